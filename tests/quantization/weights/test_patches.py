"""What the weights of convolutions meet, and GPTQ on static layers, which asks for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import octavo
from octavo.quantization.weights.gptq import gptq
from octavo.quantization.weights.layers import quantized_layers
from octavo.quantization.weights.patches import PatchMoments

SHAPES = {
    "plain": nn.Conv2d(4, 6, 3, padding=1),
    "stride": nn.Conv2d(4, 6, (2, 3), stride=(2, 1), padding=(0, 1)),
    "dilation": nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "groups": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, groups=4, padding=1),
}


def windows(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``[groups, rows, n]``, by convolutions each of which copies one value of a window."""
    n = conv.weight[0].numel()
    picks = torch.eye(n).reshape(n, *conv.weight.shape[1:])
    parts = x.chunk(conv.groups, 1)
    settings = (None, conv.stride, conv.padding, conv.dilation)
    copied = [functional.conv2d(part, picks, *settings) for part in parts]
    return torch.stack([each.permute(0, 2, 3, 1).reshape(-1, n) for each in copied])


def statistic(conv: nn.Conv2d) -> PatchMoments:
    graph = octavo.capture(conv, torch.rand(2, 4, 9, 9))
    (layer,) = quantized_layers(graph, octavo.plan(graph))
    return PatchMoments.of(layer)


@pytest.mark.parametrize("conv", SHAPES.values(), ids=SHAPES)
def test_moments_of_windows(conv: nn.Conv2d) -> None:
    x = torch.randn(3, 4, 9, 9)
    rows = windows(conv, x)
    state = statistic(conv).update(None, x)
    torch.testing.assert_close(state.mean, rows.transpose(1, 2) @ rows / rows.shape[1])
    assert state.values == rows.shape[1]


def test_two_halves_are_one_pass() -> None:
    measured, x = statistic(SHAPES["plain"]), torch.randn(8, 4, 9, 9)
    whole = measured.update(None, x)
    parts = measured.merge(measured.update(None, x[:3]), measured.update(None, x[3:]))
    torch.testing.assert_close(parts.mean, whole.mean)
    assert parts.values == whole.values == 648


def test_of_many_windows_some_are_taken() -> None:
    conv = nn.Conv2d(1, 2, 3, padding=1)
    state = PatchMoments((3, 3), (1, 1), (1, 1), (1, 1), 1).update(None, torch.randn(2, 1, 96, 96))
    assert state.values == pytest.approx(1024, rel=0.2)
    assert conv.weight[0].numel() == state.mean.shape[1]


@pytest.mark.parametrize("width", [112, 224])
def test_those_that_are_taken_are_of_all_columns(width: int) -> None:
    """Every n-th of 32 such images is in one column or two, the first of which reads padding."""
    column = torch.arange(float(width)).expand(32, 1, width, width)
    measured = PatchMoments((1, 1), (1, 1), (0, 0), (1, 1), 1).update(None, column)
    right = torch.arange(float(width)).square().mean()
    torch.testing.assert_close(measured.mean.flatten(), right[None], rtol=0.1, atol=0.0)


@pytest.mark.parametrize("conv", SHAPES.values(), ids=SHAPES)
def test_a_convolution_is_rounded_as_linear_layers_on_its_windows(conv: nn.Conv2d) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4, 9, 9).cumsum(3)
    q = octavo.quantize(
        conv, calibration=[x], weights=[octavo.GPTQ()], bias_correction=False, progress=False
    )
    rows = windows(conv, x)
    moments = rows.transpose(1, 2) @ rows / rows.shape[1]
    scale = conv.weight.detach().flatten(1).abs().amax(1) / 127
    scheme = octavo.Scheme("int8", symmetric=True, channel_axis=0, narrow_range=True)
    right = []
    for group, weight in enumerate(conv.weight.detach().flatten(1).chunk(conv.groups)):
        own = scale.chunk(conv.groups)[group]
        qparams = octavo.QParams(own, torch.zeros(len(own), dtype=torch.int32), scheme)
        right.append(gptq(weight, moments[group], qparams, 0.01))
    (found,) = [t for t in q.graph.constants.values() if t.dtype == torch.int8]
    # A weight that lies half-way may go either way: the sums are made in another order.
    assert (found.flatten(1) != torch.cat(right)).float().mean() < 0.02


@pytest.mark.parametrize("kind", ["plain", "depthwise", "linear"])
def test_static_layers_lose_less(kind: str) -> None:
    torch.manual_seed(2)
    layer = nn.Linear(64, 16) if kind == "linear" else SHAPES[kind]
    layer.reset_parameters()  # those of another run may gain less
    torch.manual_seed(0)
    mix = torch.randn(64, 64)
    data = [
        torch.randn(64, 64) @ mix if kind == "linear" else torch.randn(8, 4, 16, 16).cumsum(3)
        for _ in range(2)
    ]
    weight = octavo.QSpec(octavo.Scheme("int4", symmetric=True, channel_axis=0), octavo.MinMax())
    qconfig = octavo.QConfig(octavo.static_qconfig().activation, weight)

    def noise(*methods: octavo.WeightMethod) -> Tensor:
        q = octavo.quantize(
            layer, calibration=data, qconfig=qconfig, weights=methods, progress=False
        )
        with torch.no_grad():
            return (q.lower("reference")(data[0]) - layer(data[0])).norm()

    assert noise(octavo.GPTQ()) < 0.9 * noise()
