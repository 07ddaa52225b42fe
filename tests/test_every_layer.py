"""Every kind of layer in static int8, on the oracle and on the torch runtime.

What is not quantized by default on x86 is asked for by a rule, so that its inputs and its result
are integers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from calling import Call
from torch import Tensor, nn

import octavo
from octavo.numerics.native import library

TARGET = octavo.host_target()
WITH_LIBRARY = not library.obstacle()


@dataclass(frozen=True)
class Case:
    """An operator between two layers: what makes it, of how many dimensions, and the int8 kernel
    that torch has for it (``None``: it runs dequantized).
    """

    make: Callable[[], nn.Module]
    dims: int = 2
    kernel: str | None = None


class Between(nn.Module):
    """A layer between pointwise convolutions; a function of two tensors has two of them before."""

    def __init__(self, layer: nn.Module, dims: int, inputs: int) -> None:
        super().__init__()
        kind = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        size = (1,) if dims else ()
        self.stems = nn.ModuleList(kind(8, 8, *size) for _ in range(inputs))
        self.layer = layer
        self.head = LazyHead(kind, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(*(stem(x) for stem in self.stems)))


class LazyHead(nn.Module):
    def __init__(self, kind: type[nn.Module], size: tuple[int, ...]) -> None:
        super().__init__()
        self.kind, self.size, self.layer = kind, size, None

    def forward(self, x: Tensor) -> Tensor:
        if self.layer is None:
            channels = x.shape[-1] if self.kind is nn.Linear else x.shape[1]
            self.layer = self.kind(channels, 4, *self.size)
        return self.layer(x)


class Norm(nn.Module):
    """Instance normalization with running statistics, as a trained network has it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(8, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def of(function: Callable[..., Tensor]) -> Callable[[], nn.Module]:
    return lambda: Call(function)


CASES: dict[str, Case] = {
    "conv1d": Case(lambda: nn.Conv1d(8, 6, 3, padding="same"), 1, "onednn.qconv1d"),
    "conv1d relu6": Case(
        lambda: nn.Sequential(nn.Conv1d(8, 6, 3), nn.ReLU6()), 1, "onednn.qconv1d"
    ),
    "conv1d grouped": Case(lambda: nn.Conv1d(8, 6, 3, groups=2, dilation=2), 1, "onednn.qconv1d"),
    "conv2d": Case(lambda: nn.Conv2d(8, 6, 3, dilation=2, padding="same"), 2, "onednn.qconv2d"),
    "depthwise": Case(lambda: nn.Conv2d(8, 8, 3, groups=8), 2, "onednn.qconv2d"),
    "conv3d": Case(lambda: nn.Conv3d(8, 6, 3, padding=1), 3, "onednn.qconv3d"),
    "conv3d relu": Case(lambda: nn.Sequential(nn.Conv3d(8, 6, 3), nn.ReLU()), 3, "onednn.qconv3d"),
    "deconv1d": Case(lambda: nn.ConvTranspose1d(8, 6, 3, stride=2), 1),
    "deconv2d": Case(
        lambda: nn.ConvTranspose2d(8, 6, 2, stride=2), 2, "onednn.qconv2d as conv_transpose2d"
    ),
    "deconv2d odd": Case(
        lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, bias=False),
        2,
        "onednn.qconv2d as conv_transpose2d",
    ),
    "deconv2d relu": Case(
        lambda: nn.Sequential(nn.ConvTranspose2d(8, 6, 5, stride=3, padding=2), nn.ReLU()),
        2,
        "onednn.qconv2d as conv_transpose2d",
    ),
    "deconv2d grouped": Case(lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2), 2),
    "deconv3d": Case(lambda: nn.ConvTranspose3d(8, 6, 3, stride=2), 3),
    "linear": Case(lambda: nn.Linear(8, 12), 0, "onednn.qconv2d as linear"),
    "linear gelu": Case(
        lambda: nn.Sequential(nn.Linear(8, 12), nn.GELU()), 0, "onednn.qconv2d as linear"
    ),
    "matmul": Case(of(lambda x, y: x @ y.transpose(1, 2)), 1),
    "bmm": Case(of(lambda x, y: torch.bmm(x, y.transpose(1, 2))), 1),
    "attention": Case(of(lambda x, y, z: F.scaled_dot_product_attention(x, y, z)), 1),
    "causal attention": Case(
        of(lambda x, y, z: F.scaled_dot_product_attention(x, y, z, is_causal=True)), 1
    ),
    "add": Case(of(torch.add), 2, "onednn.qconv2d.sum"),
    "add alone": Case(of(torch.add), 1, "octavo.add"),
    "add relu": Case(of(lambda x, y: F.relu(x + y)), 2, "onednn.qconv2d.sum"),
    "sub": Case(of(torch.sub), 2, "octavo.sub"),
    "mul": Case(of(torch.mul), 2, "octavo.mul"),
    "mul broadcast": Case(
        of(lambda x, y: x[:, :1] * y.mean((2, 3), keepdim=True)), 2, "octavo.mul"
    ),
    "cat": Case(of(lambda x, y: torch.cat([x, y], 1)), 2, "torch.cat"),
    "stack": Case(of(lambda x, y: torch.stack([x, y], 1).flatten(1, 2)), 2, "torch.stack"),
    "mean": Case(of(lambda x: x.mean((2, 3), keepdim=True)), 2, "octavo.mean"),
    "bilinear": Case(
        of(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
        2,
        "octavo.upsample_bilinear2d",
    ),
    "nearest": Case(of(lambda x: F.interpolate(x, scale_factor=2)), 2, "torch.upsample_nearest2d"),
    "pad": Case(of(lambda x: F.pad(x, (1, 2, 0, 1))), 2, "torch.constant_pad_nd"),
    "roll": Case(of(lambda x: torch.roll(x, (1, -2), (2, 3))), 2, "torch.roll"),
    "reflection pad": Case(of(lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect")), 2),
    "pixel shuffle": Case(lambda: nn.PixelShuffle(2), 2, "torch.pixel_shuffle"),
    "pixel unshuffle": Case(lambda: nn.PixelUnshuffle(2), 2, "torch.pixel_unshuffle"),
    "max pool 1d": Case(lambda: nn.MaxPool1d(2), 1),
    "max pool 2d": Case(lambda: nn.MaxPool2d(3, 2, 1), 2, "octavo.max_pool2d"),
    "max pool 3d": Case(lambda: nn.MaxPool3d(2), 3),
    "average pool 1d": Case(lambda: nn.AvgPool1d(3), 1, "octavo.avg_pool1d"),
    "average pool 2d": Case(lambda: nn.AvgPool2d(3, 2, 1), 2, "octavo.avg_pool2d"),
    "average pool 3d": Case(lambda: nn.AvgPool3d(2), 3, "octavo.avg_pool3d"),
    "adaptive 1d": Case(lambda: nn.AdaptiveAvgPool1d(3), 1, "octavo.adaptive_avg_pool1d"),
    "adaptive 2d": Case(lambda: nn.AdaptiveAvgPool2d(3), 2, "octavo.adaptive_avg_pool2d"),
    "adaptive 3d": Case(lambda: nn.AdaptiveAvgPool3d(2), 3, "octavo.adaptive_avg_pool3d"),
    "adaptive max": Case(lambda: nn.AdaptiveMaxPool2d(3), 2),
    "relu": Case(lambda: nn.Sequential(nn.AvgPool2d(2), nn.ReLU()), 2, "octavo.relu"),
    "relu6": Case(lambda: nn.Sequential(nn.AvgPool2d(2), nn.ReLU6()), 2, "octavo.hardtanh"),
    **{
        name: Case(make, 1)
        for name, make in {
            "hardswish": nn.Hardswish,
            "hardsigmoid": nn.Hardsigmoid,
            "silu": nn.SiLU,
            "gelu": nn.GELU,
            "sigmoid": nn.Sigmoid,
            "tanh": nn.Tanh,
            "leaky relu": nn.LeakyReLU,
            "prelu": nn.PReLU,
            "elu": nn.ELU,
            "softmax": lambda: nn.Softmax(-1),
            "batch norm": lambda: nn.Sequential(nn.AvgPool1d(2), nn.BatchNorm1d(8)),
            "group norm": lambda: nn.GroupNorm(2, 8),
            "layer norm": lambda: nn.LayerNorm([8, 8]),
            "rms norm": lambda: nn.RMSNorm([8, 8]),
        }.items()
    },
    "instance norm": Case(Norm, 2),
}
# Where a rule has to ask, on x86.
ASKED = """
    matmul bmm scaled_dot_product_attention hardswish hardsigmoid silu gelu sigmoid tanh leaky_relu
    prelu elu softmax batch_norm group_norm instance_norm layer_norm rms_norm
""".split()


def inputs_of(layer: nn.Module) -> int:
    """How many tensors a case's layer takes."""
    function = getattr(layer, "function", None)
    return getattr(getattr(function, "__code__", None), "co_argcount", 2 if function else 1)


def shape_of(dims: int) -> tuple[int, ...]:
    """Of a batch for a case of so many dimensions."""
    return (8,) + ((8,) + (8,) * min(dims, 2) + (4,) * (dims > 2) if dims else (8,))


def quantized(name: str) -> tuple[nn.Module, octavo.QuantizedModel, Tensor]:
    case = CASES[name]
    layer = case.make()
    model = Between(layer, case.dims, inputs_of(layer)).eval()
    x = torch.randn(shape_of(case.dims))
    model(x)
    mapping = octavo.QConfigMapping()
    for op in ASKED:
        mapping.set_object_type(op, octavo.static_qconfig(TARGET))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        q = octavo.quantize(model, calibration=[x], qconfig=mapping, target=TARGET)
    return model, q, x


# What torch has no kernel for, and the library has.
OWN = {
    "attention": "native.attention",
    "causal attention": "native.attention",
    "layer norm": "native.layer_norm",
    "rms norm": "native.rms_norm",
}


@pytest.mark.parametrize("name", CASES)
def test_a_layer_runs_on_integers(name, monkeypatch):
    """On Octavo's own kernels where there are some, and on torch's."""
    case = CASES[name]
    model, q, x = quantized(name)
    monkeypatch.setattr(library, "obstacle", lambda: "torch's are tested")
    torchs = q.lower("torch")
    floats = [n for n, t in q.plan.tensors.items() if t.runs == "float" and t.op != "getitem"]
    assert not floats
    for batch in (1, 5):
        with torch.no_grad():
            expected = model(x[:batch])
        exact = q.lower("reference")(x[:batch])
        assert (exact - expected).norm() < expected.norm() / 10
        for got in (q(x[:batch]), torchs(x[:batch])):
            assert exact.shape == got.shape == expected.shape
            assert (got - exact).norm() <= expected.norm() / 100
    inside = {n: k for n, k in torchs.lowered.kernels.items() if n.startswith("layer")}
    if case.kernel is None:
        assert any(layer.startswith("layer") for layer in torchs.summary().fallbacks)
        if name in OWN and WITH_LIBRARY:
            assert OWN[name] in {k for n, k in q.lowered.kernels.items() if n.startswith("layer")}
    else:
        assert case.kernel in set(inside.values()) | _on_this_cpu(case.kernel)
        assert not torchs.lowered.fallbacks
        assert not q.lowered.fallbacks


def _on_this_cpu(kernel: str) -> set[str]:
    """With VNNI a linear layer runs on the matrix product."""
    with_vnni = TARGET == "x86" and kernel == "onednn.qconv2d as linear"
    return {kernel} if with_vnni else set()


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], **settings: object) -> None:
        super().__init__()
        self.rnn = kind(8, 12, batch_first=True, **settings)
        self.head = nn.Linear(24 if settings.get("bidirectional") else 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind, settings):
    model, x = Recurrent(kind, **settings).eval(), torch.randn(16, 6, 8)
    q = octavo.quantize(model, calibration=[x], target=TARGET)
    layers = [t for t in q.plan.tensors.values() if t.op in ("lstm", "gru", "rnn_tanh")]
    (layer,) = (t for t in layers if t.kind == "activation")
    assert layer.runs == "int8"
    assert list(q.summary().fallbacks) == ([layer.tensor] if library.obstacle() else [])
    for batch in (1, 5):
        y = x[:batch]
        with torch.no_grad():
            expected = model(y)
        assert (q.lower("reference")(y) - expected).norm() < expected.norm() / 10
        assert (q.lower("reference")(y) - q(y)).norm() < expected.norm() / 100


def test_an_embedding_is_read_as_integers_in_static_mode_too():
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 3)

        def forward(self, tokens):
            return self.head(self.table(tokens).mean(1))

    model, tokens = Text(), torch.randint(0, 50, (8, 7))
    q = octavo.quantize(model, calibration=[tokens], target=TARGET)
    assert q.plan.tensors["table"].runs == "weight_only"
    assert q.lowered.kernels["table"].endswith(".embedding")
    with torch.no_grad():
        expected = model(tokens)
    assert (q(tokens) - expected).norm() < expected.norm() / 20
