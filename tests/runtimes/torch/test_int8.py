"""The torch runtime against the oracle: every kind of layer alone, memory, guards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from calling import Call, Net
from torch import Tensor, nn

import octavo
from benchmarks import layers
from octavo.graph.graph import Graph, Ref
from octavo.runtimes import cpu, lower

CPU = torch.device("cpu")


class Between(nn.Module):
    """A layer between int8 layers: a stem makes its input, a head reads its result."""

    def __init__(self, layer: Callable[..., Tensor], channels: int = 8, inputs: int = 1) -> None:
        super().__init__()
        self.stems = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(inputs))
        self.layer = layer
        self.head = nn.Conv2d(channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(*(stem(x) for stem in self.stems)))


class Fused(nn.Module):
    """conv + shortcut, with or without relu."""

    def __init__(self, relu: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x) + x)


class Gate(nn.Module):
    """A product with one value per channel, as in squeeze and excitation."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y.mean((2, 3), keepdim=True)


def conv(*args: int, **kwargs: object) -> nn.Conv2d:
    return nn.Conv2d(*args, **kwargs)  # type: ignore[arg-type]


def sequence(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


LAYERS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "conv": (lambda: conv(8, 12, 3), 12, 1),
    "conv strided": (lambda: conv(8, 8, 3, stride=2, padding=1), 8, 1),
    "conv dilated": (lambda: conv(8, 8, 3, dilation=2, padding="same"), 8, 1),
    "conv grouped": (lambda: conv(8, 8, 3, groups=2), 8, 1),
    "conv depthwise": (lambda: conv(8, 8, 3, groups=8, bias=False), 8, 1),
    "conv relu": (lambda: sequence(conv(8, 8, 3), nn.ReLU()), 8, 1),
    "conv relu6": (lambda: sequence(conv(8, 8, 3), nn.ReLU6()), 8, 1),
    "conv hardtanh": (lambda: sequence(conv(8, 8, 3), nn.Hardtanh(-0.5, 0.7)), 8, 1),
    "conv hardswish": (lambda: sequence(conv(8, 8, 3), nn.Hardswish()), 8, 1),
    "conv silu": (lambda: sequence(conv(8, 8, 3), nn.SiLU()), 8, 1),
    "conv add relu": (lambda: Fused(relu=True), 8, 1),
    "conv add": (lambda: Fused(relu=False), 8, 1),
    "max pool": (lambda: nn.MaxPool2d(3, 2, 1), 8, 1),
    "max pool even": (lambda: nn.MaxPool2d(2), 8, 1),
    "max pool wide": (lambda: nn.MaxPool2d((1, 5), (3, 1), (0, 2)), 8, 1),
    "max pool ceil": (lambda: nn.MaxPool2d(3, 2, ceil_mode=True), 8, 1),
    "average pool": (lambda: nn.AvgPool2d(3, 2, 1), 8, 1),
    "adaptive pool": (lambda: nn.AdaptiveAvgPool2d((3, 2)), 8, 1),
    "global pool": (lambda: nn.AdaptiveAvgPool2d(1), 8, 1),
    "relu alone": (lambda: sequence(nn.MaxPool2d(2), nn.ReLU()), 8, 1),
    "pixel shuffle": (lambda: nn.PixelShuffle(2), 2, 1),
    "channel shuffle": (lambda: nn.ChannelShuffle(4), 8, 1),
}
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], int, int]] = {
    "add": (lambda a, b: a + b, 8, 2),
    "add relu": (lambda a, b: torch.relu(torch.max_pool2d(a, 2) + torch.max_pool2d(b, 2)), 8, 2),
    "mul": (lambda a, b: a * b, 8, 2),
    "cat": (lambda a, b: torch.cat([a, torch.relu(b)], 1), 16, 2),
    "transpose": (lambda a: a.transpose(2, 3), 8, 1),
    "slice": (lambda a: a[:, :, 1:5, ::2], 8, 1),
    "chunk": (lambda a: torch.cat(a.chunk(2, 1)[::-1], 1), 8, 1),
    "reshape": (lambda a: a.reshape(a.shape[0], 8, -1, 1), 8, 1),
    "mean": (lambda a: a.mean((2,), keepdim=True), 8, 1),
}


def cases() -> list[object]:
    made: list[object] = [pytest.param(*case, id=name) for name, case in LAYERS.items()]
    for name, (function, channels, inputs) in FUNCTIONS.items():
        made.append(pytest.param(lambda f=function: Call(f), channels, inputs, id=name))
    made.append(pytest.param(Gate, 8, 2, id="gate"))
    return made


def run(graph: Graph, runtime: str, x: Tensor) -> tuple[Tensor, ...]:
    return lower(graph, runtime, CPU).run(x)


def compare_each_layer(q: octavo.QuantizedModel, x: Tensor) -> dict[str, tuple[int, float]]:
    """For every quantized tensor, made from the oracle's own integers before it: the largest
    difference in steps, and the share of values that are equal."""
    found = layers.agreements(q.graph, x)
    return {seen.name: (seen.max_step, seen.equal / seen.values) for seen in found}


@pytest.mark.parametrize(("make", "channels", "inputs"), cases())
def test_each_layer_alone_is_within_one_step_of_the_oracle(make, channels, inputs):
    model = Between(make(), channels, inputs)
    x = torch.randn(16, 8, 8, 8)
    q = octavo.quantize(model, calibration=[x], target=octavo.host_target(), progress=False)
    assert q.lowered.fallbacks == {}
    assert all(
        tensor.runs == "int8" for tensor in q.plan.tensors.values() if tensor.op and tensor.spec
    )
    for largest, equal in compare_each_layer(q, x).values():
        assert largest <= 1
        assert equal >= 0.999


@pytest.mark.usefixtures("torchs_kernels")
def test_linear_relu_alone():
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16), nn.Linear(16, 4))
    x = torch.randn(64, 32)
    q = octavo.quantize(model, calibration=[x], target=octavo.host_target())
    assert all(name.startswith("onednn.q") for name in q.lowered.kernels.values())
    assert not q.lowered.fallbacks
    for largest, equal in compare_each_layer(q, x).values():
        assert largest <= 1
        assert equal >= 0.999


def test_values_beyond_the_calibrated_range_are_clipped_as_by_the_oracle():
    torch.manual_seed(0)
    model = Between(Fused(relu=True))
    x = torch.randn(8, 8, 8, 8)
    seven_bits = octavo.QSpec(octavo.Scheme("uint8", reduce_range=True), octavo.MinMax())
    qconfig = octavo.QConfig(seven_bits, octavo.static_qconfig("x86").weight)
    q = octavo.quantize(model, calibration=[x], qconfig=qconfig)
    graph = q.graph
    names = [n.name for n in graph.nodes if n.op == "octavo.quantize.default"]
    outputs = run(replace(graph, outputs=[Ref(n) for n in names]), "torch", 20 * x)
    assert [int(t.max()) for t in outputs] == [127, 127, 127]
    assert all(largest <= 1 for largest, _ in compare_each_layer(q, 20 * x).values())


@pytest.mark.usefixtures("torchs_kernels")
def test_a_shortcut_that_is_read_again_is_not_overwritten():
    def rereading(net, x):
        y = torch.relu(net.a(x))
        z = torch.relu(net.b(y) + y)
        return net.c(torch.cat([z[:, :4], y[:, 4:]], 1))

    model = Net(rereading, **{name: nn.Conv2d(8, 8, 3, padding=1) for name in "abc"})
    x = torch.randn(4, 8, 8, 8)
    q = octavo.quantize(model, calibration=[x], target=octavo.host_target())
    assert "onednn.qconv2d.sum" in q.lowered.kernels.values()
    assert all(largest <= 1 for largest, _ in compare_each_layer(q, x).values())
    assert torch.equal(q(x), q(x))


@pytest.mark.usefixtures("torchs_kernels")
def test_a_convolution_added_to_its_own_input_does_not_overwrite_it():
    """The kernel sums into the shortcut's memory, which is what the convolution reads."""
    x = torch.randn(7, 8, 8, 8)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.MaxPool2d(2), Fused(relu=True), nn.Conv2d(8, 4, 1))
    q = octavo.quantize(model, calibration=[x], target=octavo.host_target())
    assert "onednn.qconv2d.sum" in q.lowered.kernels.values()
    assert all(largest <= 1 for largest, _ in compare_each_layer(q, x).values())
    first = q(x)
    assert all(torch.equal(q(x), first) for _ in range(20))


@pytest.mark.usefixtures("torchs_kernels")
def test_without_vnni_eight_bit_activations_fall_back_and_say_so(monkeypatch):
    monkeypatch.setattr(cpu, "saturates", lambda: True)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8))
    x = torch.randn(4, 8, 8, 8)
    with pytest.warns(
        octavo.OctavoWarning, match=r"1 quantized layers run in float .*\(0\): .*no VNNI"
    ):
        q = octavo.quantize(model, calibration=[x], target="x86")
    assert list(q.summary().fallbacks) == ["0"]
    assert "onednn.qconv2d" in q.lowered.kernels["2"]  # depthwise: no pairs to overflow
    assert torch.allclose(q(x), q.lower("reference")(x), atol=1e-5)
    seven_bits = octavo.quantize(model, calibration=[x], target="x86-avx2")
    assert seven_bits.summary().fallbacks == {}


def test_without_vnni_small_weights_cannot_saturate(monkeypatch):
    monkeypatch.setattr(cpu, "saturates", lambda: True)
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0, -0.9, 0.0], [0.0, 1.0, 0.0, 0.0]]))
    q = octavo.quantize(layer, calibration=[torch.randn(8, 4)], target="x86")
    assert q.summary().fallbacks == {}


@pytest.mark.usefixtures("torchs_kernels")
def test_a_cpu_without_kernels_runs_layers_with_weights_dequantized(monkeypatch):
    monkeypatch.setattr(cpu, "missing_kernels", lambda: "torch has no int8 kernels here (test)")
    x = torch.randn(4, 8, 8, 8)
    with pytest.warns(octavo.OctavoWarning, match="torch has no int8 kernels here"):
        q = octavo.quantize(Between(Fused(relu=True)), calibration=[x])
    assert set(q.summary().fallbacks) == {"stems.0", "layer.conv", "head"}
    assert torch.allclose(q(x), q.lower("reference")(x), atol=1e-5)


WEIGHT = octavo.QSpec(octavo.Scheme("int8", symmetric=True, channel_axis=0), octavo.MinMax())


@pytest.mark.parametrize(
    "scheme",
    [
        octavo.Scheme("int8", reduce_range=True),
        octavo.Scheme("int8", symmetric=True, narrow_range=True, reduce_range=True),
        octavo.Scheme("int4"),
        octavo.Scheme("uint4", symmetric=True),
        octavo.Scheme("uint8", reduce_range=True, power_of_two=True),
    ],
    ids=str,
)
def test_other_integers_run_on_the_same_kernels(scheme):
    qconfig = octavo.QConfig(octavo.QSpec(scheme, octavo.MinMax()), WEIGHT)
    model = Between(Fused(relu=True))
    x = torch.randn(8, 8, 8, 8)
    q = octavo.quantize(model, calibration=[x], qconfig=qconfig)
    assert not q.lowered.fallbacks
    for largest, equal in compare_each_layer(q, x).values():
        assert largest <= 1
        assert equal >= 0.999


@pytest.mark.usefixtures("torchs_kernels")
@pytest.mark.parametrize("saturating", [False, True], ids=["", "as without VNNI"])
@pytest.mark.parametrize("dtype", ["int2", "int3", "int4", "int5", "int7"])
def test_weights_below_eight_bits_run_on_the_same_kernels(monkeypatch, dtype, saturating):
    """So small ones overflow no sum of pairs, whatever the activations are."""
    if saturating:
        monkeypatch.setattr(cpu, "saturates", lambda: True)
    scheme = octavo.Scheme(dtype, symmetric=True, channel_axis=0, narrow_range=dtype != "int2")
    qconfig = octavo.static_qconfig("x86")
    qconfig = octavo.QConfig(qconfig.activation, octavo.QSpec(scheme, octavo.MinMax()))
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ConvTranspose2d(8, 6, 2, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 12 * 12, 5),
        nn.Linear(5, 3),
    )
    x = torch.randn(8, 4, 8, 8)
    q = octavo.quantize(model, calibration=[x], qconfig=qconfig)
    assert not q.lowered.fallbacks
    assert sum(name.startswith("onednn.q") for name in q.lowered.kernels.values()) >= 5
    for largest, equal in compare_each_layer(q, x).values():
        assert largest <= 1
        assert equal >= 0.999


def test_a_dynamic_layer_of_four_bits_runs_on_integers():
    scheme = octavo.Scheme("int4", symmetric=True, channel_axis=0, narrow_range=True)
    qconfig = octavo.dynamic_qconfig("x86")
    qconfig = octavo.QConfig(qconfig.activation, octavo.QSpec(scheme, octavo.MinMax()))
    x = torch.randn(8, 32)
    q = octavo.quantize(nn.Linear(32, 16), x, qconfig=qconfig)
    assert not q.lowered.fallbacks
    assert "per token" in next(iter(q.lowered.kernels.values()))
    torch.testing.assert_close(q(x), q.lower("reference")(x), rtol=1e-5, atol=1e-5)


def test_sixteen_bits_fall_back():
    spec = octavo.QSpec(octavo.Scheme("int16"), octavo.MinMax())
    with pytest.warns(octavo.OctavoWarning, match="its input is torch.int16"):
        q = octavo.quantize(
            nn.Linear(4, 4), calibration=[torch.randn(8, 4)], qconfig=octavo.QConfig(spec, WEIGHT)
        )
    assert list(q.summary().fallbacks) == ["linear"]


PROGRAM = """
import torch, octavo, warnings
from torch import nn
from octavo.runtimes.torch import native_layers
native_layers.obstacle = lambda context: "torch's own kernels are tested"
warnings.simplefilter("ignore")
torch.manual_seed(0)
head = (nn.Flatten(), nn.Linear(128, 4))
model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), *head)
x = torch.rand(4, 8, 8, 8)
for target in ("x86", octavo.host_target()):
    q = octavo.quantize(model, calibration=[x], target=target)
    error = (q(x) - q.lower("reference")(x)).abs().max() / q(x).abs().max()
    print(target, len(q.summary().fallbacks), float(error) < 0.02)
"""


def test_an_old_cpu_computes_rightly():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[:2] == ["x86 3 True", "x86-avx2 0 True"]
