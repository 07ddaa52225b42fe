"""oneDNN's kernels where they are at their ends: windows beside the image, groups of one channel,
halves of steps. All against the oracle, on whatever instructions this process runs with.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from capturing import captured_as
from decibel import sqnr_db
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import octavo
from benchmarks import layers
from octavo import MinMax, QConfig, QSpec, Scheme
from octavo.graph.graph import Graph, Node
from octavo.measuring.parity import LayerParity
from octavo.numerics.observers import PairSum
from octavo.runtimes import cpu, lower
from octavo.runtimes.options import Options
from octavo.runtimes.torch import onednn
from octavo.runtimes.torch.int8 import lower_to


def initialized(layer: nn.Module) -> nn.Module:
    """With weights that are always the same."""
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -0.5, 0.7)
    return layer.eval()


def quantized(layer: nn.Module, x: Tensor, **kwargs: object) -> octavo.QuantizedModel:
    net, target = initialized(layer), octavo.host_target()
    return octavo.quantize(net, calibration=[x], target=target, progress=False, **kwargs)


def against_the_oracle(q: octavo.QuantizedModel, *batches: Tensor) -> list[LayerParity]:
    """Each layer, on batches of all sizes, in memory that holds something else before."""
    found = []
    for batch in batches:
        junk = [torch.full((size,), 1e30) for size in (100, 1_000, 10_000, 100_000)]
        del junk
        (runtime,) = octavo.verify(q, [batch], runtimes=["torch"]).runtimes
        assert runtime.error == ""
        found += list(runtime.layers)
    return found


# Input channels, the convolution, the image.
GEOMETRIES = {
    "padding of a kernel": (5, nn.Conv2d(5, 10, 2, padding=2, groups=5), (6, 6)),
    "padding of a kernel, no groups": (3, nn.Conv2d(3, 8, (2, 2), (3, 2), (0, 3)), (3, 1)),
    "wide padding, strided": (3, nn.Conv2d(3, 12, (3, 2), (3, 1), (3, 5), groups=3), (7, 5)),
    "image between two taps": (4, nn.Conv2d(4, 8, 2, padding=3, dilation=6), (3, 4)),
    "depthwise, padding of a kernel": (6, nn.Conv2d(6, 6, 3, padding=3, groups=6), (5, 5)),
    "1-d, padding of a kernel": (4, nn.Conv1d(4, 8, 2, padding=3, groups=4), (5,)),
    "3-d, padding of a kernel": (2, nn.Conv3d(2, 4, 2, padding=2), (3, 3, 3)),
    "several outputs of a channel": (5, nn.Conv2d(5, 40, (3, 3), (1, 3), (2, 1), groups=5), (2, 2)),
    "several outputs of one channel": (1, nn.Conv2d(1, 6, 5, (1, 2), 2), (11, 2)),
    "3-d, several outputs of one channel": (1, nn.Conv3d(1, 6, 3, padding=1), (1, 7, 5)),
    "3-d depthwise": (8, nn.Conv3d(8, 8, 3, padding=1, groups=8), (4, 5, 5)),
    "1-d depthwise": (8, nn.Conv1d(8, 8, 3, padding=1, groups=8), (9,)),
    "rows of 128 values": (16, nn.Conv2d(16, 8, (3, 8), 1, (1, 4)), (9, 20)),
    "1-d, rows of 128 values": (32, nn.Conv1d(32, 32, 16, padding=8, groups=4), (39,)),
    "rows of 192 values": (12, nn.Conv2d(12, 8, (1, 16), (1, 2), dilation=(1, 2)), (3, 50)),
    "one column": (3, nn.Conv2d(3, 8, 3, (1, 2), 1), (9, 2)),
    "3-d, one column": (4, nn.Conv3d(4, 8, 3, (1, 1, 3)), (3, 5, 5)),
    "3-d, one image": (3, nn.Conv3d(3, 8, 3, padding=1), (1, 7, 5)),
    "one to one": (1, nn.Conv2d(1, 1, 3, padding=1), (8, 8)),
    "one to one, 1-d": (1, nn.Conv1d(1, 1, 5), (16,)),
}


@cache
def captured(name: str) -> tuple[nn.Module, Tensor, Graph]:
    """A convolution with another behind, its input and its graph, for all modes."""
    channels, layer, image = GEOMETRIES[name]
    model = nn.Sequential(layer, nn.ReLU(), type(layer)(layer.out_channels, 3, 1))
    x = torch.randn(2, channels, *image) + 0.3
    return model, x, octavo.capture(initialized(model), x)


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolutions_of_any_geometry(name, mode):
    model, x, graph = captured(name)
    rules = octavo.QConfigMapping()
    if mode == "dynamic":
        rules.set_module_name("0", octavo.dynamic_qconfig(octavo.host_target()))
    with captured_as(graph):
        q = quantized(model, x, qconfig=rules)
    assert q.lowered.fallbacks == {}
    for layer_parity in against_the_oracle(q, x, x[:1], x.repeat(4, *[1] * (x.dim() - 1))[:7]):
        assert (layer_parity.steps or 0) <= 1
        assert layer_parity.unequal < 0.01
        assert layer_parity.sqnr_db > 40


@pytest.mark.skipif(not cpu.has_amx(), reason="oneDNN is wrong there with AMX alone")
@pytest.mark.parametrize("programs", [None, False])
def test_volumes_of_which_windows_skip_values_are_not_left_to_a_race(programs):
    """With two threads oneDNN had 4 to 130 of 400 such calls wrong."""
    x = torch.randn(4, 48, 4, 5, 1)
    q = quantized(nn.Sequential(nn.Conv3d(48, 15, (1, 1, 2), (3, 2, 2), (0, 1, 1)), nn.ReLU()), x)
    kernels = lower(q.graph, "torch", torch.device("cpu"), Options(programs=programs)).kernels
    assert kernels == ({"0": "native.conv3d", "1": "native.conv3d"} if programs is None else {})
    wanted = q.lower("reference")(x)
    assert all(sqnr_db(wanted, q(x)) > 80 for _ in range(20))


class Narrow(nn.Module):
    """Two results of one column, the one by windows of three, added up."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 3, (1, 2), 1), nn.Conv2d(4, 8, 1, (1, 2))
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.a(x) + self.b(x)))


def test_a_sum_of_one_column_is_added():
    x = torch.randn(2, 4, 9, 2)
    q = quantized(Narrow(), x)
    lowered = lower_to(q.graph, "python", programs=False)
    assert "onednn.qconv2d.sum" in lowered.kernels.values()
    for batch in (x, torch.randn(3, 4, 9, 2), torch.randn(1, 4, 9, 2)):
        (have,) = lowered.run(batch)
        assert sqnr_db(q.lower("reference")(batch), have) > 40


def test_one_column_is_told_by_the_window_with_its_added_tap():
    """Rows of 192 values get a tap of zeros; at the widths of 16 and 17 one column is left."""
    torch.manual_seed(0)
    x = torch.randn(4, 24, 14, 15)
    q = quantized(nn.Sequential(nn.Conv2d(24, 16, (2, 8), (1, 3), (2, 0), (1, 2)), nn.ReLU()), x)
    lowered = lower_to(q.graph, "python", programs=False)
    assert "onednn.qconv2d" in lowered.kernels.values()
    for width in (15, 16, 17, 18):
        batch = torch.randn(3, 24, 14, width)
        (have,) = lowered.run(batch)
        assert sqnr_db(q.lower("reference")(batch), have) > 40


SIZES = st.integers(1, 5)


@given(size=SIZES, taps=SIZES, padding=st.integers(0, 6), dilation=SIZES, stride=SIZES)
def test_windows_that_miss_the_image_are_found(size, taps, padding, dilation, stride):
    positions = range(-padding, size + padding - dilation * (taps - 1), stride)
    windows = [range(start, start + dilation * (taps - 1) + 1, dilation) for start in positions]
    missing = any(all(not 0 <= place < size for place in window) for window in windows)
    if missing:
        assert onednn._windows_miss([size], [taps], [padding], [dilation])
        assert onednn._windows_miss([None], [taps], [padding], [dilation])
    if padding < taps and dilation == 1:  # the usual ones are left to the kernel
        assert not onednn._windows_miss([None], [taps], [padding], [dilation])


def powers_of_two() -> QConfig:
    """Scales whose ratios are powers of two: sums then often lie between two steps."""
    weight = Scheme("int8", symmetric=True, channel_axis=0, narrow_range=True, power_of_two=True)
    activation = Scheme("uint8", power_of_two=True)
    return QConfig(QSpec(activation, MinMax()), QSpec(weight, PairSum()))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h) + h


HALVES = {
    "linear": (lambda: nn.Linear(8, 16), lambda: nn.Linear(16, 4), (8,)),
    "linear relu": (
        lambda: nn.Sequential(nn.Linear(8, 16), nn.Hardtanh(-0.5, 3)),
        lambda: nn.Linear(16, 4),
        (8,),
    ),
    "conv": (lambda: nn.Conv2d(8, 16, 1), lambda: nn.Conv2d(16, 4, 1), (8, 6, 6)),
    "conv1d": (lambda: nn.Conv1d(8, 16, 1), lambda: nn.Conv1d(16, 4, 1), (8, 6)),
    "transposed": (
        lambda: nn.ConvTranspose2d(8, 16, 2, 2),
        lambda: nn.Conv2d(16, 4, 1),
        (8, 4, 4),
    ),
    "residual": (Residual, lambda: nn.Conv2d(8, 4, 1), (8, 6, 6)),
    "average": (
        lambda: nn.Sequential(nn.Conv2d(8, 16, 1), nn.AvgPool2d(2)),
        lambda: nn.Conv2d(16, 4, 1),
        (8, 6, 6),
    ),
}


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize("name", HALVES)
def test_halves_are_rounded_to_even_before_the_zero_point(name, odd):
    """One meaning, the oracle's and ONNX's: with powers of two no float arithmetic hides it."""
    layer, last, shape = HALVES[name]
    x = torch.randn(64, *shape)
    rules = octavo.QConfigMapping().set_global(powers_of_two())
    q = quantized(nn.Sequential(layer(), last()), x, qconfig=rules)
    graph = with_zero_points(q.graph, odd)
    for seen in layers.agreements(graph, x):
        assert seen.equal == seen.values, seen
    assert lower(graph, "torch", torch.device("cpu")).fallbacks == {}


def with_zero_points(graph: Graph, odd: int) -> Graph:
    """The same with all zero points of activations odd, or all even."""

    def moved(node: Node) -> Node:
        if node.op not in ("octavo.quantize.default", "octavo.dequantize.default"):
            return node
        zero_point = node.args[2]
        zero_point += zero_point % 2 != odd
        return replace(node, args=(*node.args[:2], zero_point, *node.args[3:]))

    return replace(graph, nodes=tuple(map(moved, graph.nodes)))
