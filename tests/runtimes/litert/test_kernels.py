"""LiteRT's kernels round as their rules say: the integers are those of each set's own oracle."""

from __future__ import annotations

import pytest
import torch
from litert_models import SHARE, SIXTEEN, Between
from sweeping import swept
from torch import nn
from torch.nn import functional as F

import octavo
from octavo.graph.cuts import Cuts
from octavo.measuring.parity import LayerParity, _compared_layers
from octavo.runtimes import RUNTIMES
from octavo.runtimes.options import Options

pytest.importorskip("ai_edge_litert")

from octavo.runtimes.litert.export import to_tflite
from octavo.runtimes.litert.interpreter import Program
from octavo.runtimes.litert.kernels import KERNELS, oracle_of
from octavo.runtimes.litert.runtime import Programs

OWN = ["optimized", "reference"]


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(12, 16), nn.Linear(12, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) @ self.other(x).transpose(-1, -2)


IMAGE, ROWS = (4, 3, 16, 16), (4, 9, 12)
FUNCTIONS = ("sigmoid", "tanh", "softmax")
CASES = {
    "convolutions": (nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 16, 1)), IMAGE),
    "clipped": (nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU6(), nn.Conv2d(32, 8, 3)), IMAGE),
    "depthwise": (Between(nn.Conv2d(37, 37, 3, groups=37), 37), IMAGE),
    "groups": (Between(nn.Conv2d(8, 40, 3, groups=4)), IMAGE),
    "transposed": (Between(nn.ConvTranspose2d(8, 13, 4, 2, 1)), IMAGE),
    "linear": (nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 48)), ROWS),
    "add": (Between(lambda x, y: (x + y).relu()), IMAGE),
    "sub": (Between(lambda x, y: x - y), IMAGE),
    "mul": (Between(lambda x, y: x * y), IMAGE),
    "matmul": (Products(), ROWS),
    "mean of images": (Between(nn.AdaptiveAvgPool2d(1), 37), IMAGE),
    "mean of few pixels": (Between(lambda x: F.max_pool2d(x, 8).mean((2, 3))), IMAGE),
    "mean of channels": (Between(lambda x: x.mean(1, keepdim=True)), IMAGE),
    "averages": (Between(nn.AvgPool2d(2)), IMAGE),
    "relu alone": (Between(lambda x: F.max_pool2d(x, 2).relu()), IMAGE),
    "sigmoid": (Between(lambda x: x.sigmoid()), IMAGE),
    "tanh": (Between(lambda x: x.tanh()), IMAGE),
    "softmax": (Between(lambda x: x.softmax(1)), IMAGE),
    "softmax of rows": (Between(lambda x: x.softmax(-1)), IMAGE),
}
# LiteRT has functions of int16 whose scales are a power of two alone: these stay in float.
OF_SIXTEEN_BITS = [name for name in CASES if name.split()[0] not in FUNCTIONS]
KEPT = ["clipped", "depthwise", "add", "softmax"]


def layers_of(model: nn.Module, x: torch.Tensor, kernels: str, own: bool, **how: object):
    """Each layer beside the oracle: the kernels' own, or the graph's."""
    torch.manual_seed(0)
    how = {"calibration": [(x,)], "target": "edge", "progress": False, **how}
    q = octavo.quantize(model.eval(), (x,), **how)
    cuts = Cuts.of(q.graph, (x,))
    programs = Programs(cuts.graph, Options(threads=1), kernels)
    expected = cuts.expecting(programs.oracle) if own else cuts
    return _compared_layers(expected, programs.run)


def worst(layers: tuple[LayerParity, ...]) -> tuple[float, int]:
    return max(layer.unequal for layer in layers), max(layer.steps or 0 for layer in layers)


@pytest.mark.parametrize("kernels", OWN)
@pytest.mark.parametrize("name", swept(CASES, KEPT))
def test_the_integers_are_those_of_the_kernels_own_oracle(name, kernels):
    model, shape = CASES[name]
    unequal, steps = worst(layers_of(model, 2 * torch.randn(shape), kernels, own=True))
    assert unequal <= SHARE
    assert steps <= 1


def test_the_graphs_own_oracle_is_another():
    """LiteRT's own kernels round sums more than once; XNNPACK's round as the graph does."""
    model, x = nn.Conv2d(4, 64, 3, padding=1), torch.randn(4, 4, 16, 16)
    assert worst(layers_of(model, x, "xnnpack", own=False))[0] < 1e-4
    assert 1e-3 < worst(layers_of(model, x, "reference", own=False))[0] < 0.02


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", swept(OF_SIXTEEN_BITS, ["clipped", "linear", "add", "mul"]))
def test_the_integers_of_sixteen_bits_too(name, kernels):
    """XNNPACK has none: LiteRT's own kernels stand in."""
    model, shape = CASES[name]
    x = 2 * torch.randn(shape)
    unequal, steps = worst(layers_of(model, x, kernels, own=True, qconfig=SIXTEEN))
    assert unequal <= SHARE
    assert steps <= 1


@pytest.mark.parametrize("kernels", KERNELS)
def test_floats_become_sixteen_bits_as_the_kernels_round_them(kernels):
    """By a product and to even, or by a division and away from zero, at 65,536 integers: what is
    half way shows. The hard sigmoid before it divides by six as torch does.
    """
    model, x = Between(nn.Hardsigmoid(), 64), 2 * torch.randn(IMAGE)
    layers = layers_of(model, x, kernels, own=True, qconfig=SIXTEEN)
    assert worst(layers)[0] < 1e-4


def test_sums_of_sixteen_bits_are_multiplied_by_as_many():
    """A convolution's scale has a mantissa of 16 bits, which the graph's has not."""
    model, shape = CASES["clipped"]
    layers = layers_of(model, 2 * torch.randn(shape), "xnnpack", own=False, qconfig=SIXTEEN)
    assert worst(layers)[0] > 0.01


@pytest.mark.parametrize("kernels", KERNELS)
def test_hard_swish_of_boards(kernels):
    """All sets have one kernel for its integers, which multiplies by sixteen bits."""
    torch.manual_seed(0)
    model, x = Between(nn.Hardswish()).eval(), 3 * torch.randn(IMAGE)
    q = octavo.quantize(model, (x,), calibration=[(x,)], target="edge", progress=False)
    cuts = Cuts.of(q.graph, (x,))
    written = to_tflite(cuts.graph, [entry.sizes for entry in cuts.graph.inputs], full_integer=True)
    assert ["HARD_SWISH int8"] in list(written.kernels.values())
    oracle, program = (
        oracle_of(cuts.graph, written.made, KERNELS[kernels]),
        Program(written, kernels),
    )
    unequal, steps = worst(_compared_layers(cuts.expecting(oracle), lambda *t: program.run(t)))
    assert unequal <= SHARE
    assert steps <= 1


@pytest.mark.parametrize("kernels", OWN)
def test_unsigned_activations_of_other_targets(kernels):
    model, x = CASES["clipped"][0], 2 * torch.randn(IMAGE)
    unequal, steps = worst(layers_of(model, x, kernels, own=True, target="x86"))
    assert unequal <= SHARE
    assert steps <= 1


@pytest.mark.parametrize("kernels", OWN)
def test_a_set_of_kernels_is_verified_where_it_is_asked_for(kernels):
    name = f"litert/{kernels}"
    assert name in RUNTIMES
    assert name not in list(RUNTIMES)
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)).eval()
    q = octavo.quantize(net, calibration=[x], target="edge", progress=False)
    found = octavo.verify(q, [x], runtimes=[name]).runtimes[0]
    assert (found.runtime, found.error, found.passed) == (name, "", True)
    assert max(layer.unequal for layer in found.layers) <= SHARE
    assert q.lower(name).lowered.runtime == name


def test_a_set_of_kernels_that_there_is_not():
    assert "litert/nope" not in RUNTIMES
    assert "nope/reference" not in RUNTIMES
