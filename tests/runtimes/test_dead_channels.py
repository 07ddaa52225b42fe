"""Channels with a bias and next to no weights: pruned filters, batch norms with a factor near zero.

Their bias, in steps of input scale times weight scale, is more than an int32 holds.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from capturing import captured_as
from decibel import sqnr_db
from torch import nn

import octavo

RUNTIMES = ("torch", "onnxruntime", "openvino")
LAYERS = {
    "linear": (lambda: nn.Linear(8, 8), (4, 8)),
    "linear over tokens": (lambda: nn.Linear(8, 8), (4, 5, 8)),
    "conv1d": (lambda: nn.Conv1d(8, 8, 3), (4, 8, 9)),
    "conv2d": (lambda: nn.Conv2d(8, 8, 3), (4, 8, 9, 9)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), (4, 8, 9, 9)),
    "grouped": (lambda: nn.Conv2d(8, 8, 3, groups=2), (4, 8, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(8, 8, 2, stride=2), (4, 8, 9, 9)),
    "grouped and transposed": (lambda: nn.ConvTranspose2d(8, 8, 3, groups=2), (4, 8, 9, 9)),
}


def with_dead_channels(name: str, factor: float) -> nn.Module:
    """The layer between two others; two of its channels have a factor for their weights."""
    torch.manual_seed(0)
    make, _ = LAYERS[name]
    layer, transposed = make(), "transposed" in name
    with torch.no_grad():
        weight = layer.weight.transpose(0, 1) if transposed else layer.weight
        weight[:2] *= factor
        layer.bias.copy_(torch.tensor([0.5, -0.25, 2.0, -1.0]).repeat(2))
    return nn.Sequential(nn.ReLU(), layer, nn.ReLU(), _behind(layer)).eval()


def _behind(layer: nn.Module) -> nn.Module:
    kinds = {nn.Linear: lambda: nn.Linear(8, 4), nn.Conv1d: lambda: nn.Conv1d(8, 4, 1)}
    return kinds.get(type(layer), lambda: nn.Conv2d(8, 4, 1))()


@cache
def captured(name: str, factor: float) -> tuple:
    """A model, its input and its graph, for all targets."""
    model, x = with_dead_channels(name, factor), torch.rand(LAYERS[name][1])
    return model, x, octavo.capture(model, x)


@pytest.mark.parametrize("target", ["x86", "arm"])
@pytest.mark.parametrize("factor", [0.0, 1e-7])
@pytest.mark.parametrize("name", LAYERS)
def test_every_runtime_adds_their_biases(name, factor, target):
    model, x, graph = captured(name, factor)
    with captured_as(graph):
        q = octavo.quantize(model, calibration=[x], target=target, progress=False)
    expected = q.lower("reference")(x)
    assert sqnr_db(model(x), expected) > 28  # one scale for a weight costs most: 31
    for runtime in RUNTIMES:
        assert sqnr_db(expected, q.lower(runtime)(x)) > 45, runtime


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_dynamic_layers_add_them_as_floats(runtime):
    model, x = with_dead_channels("linear", 0.0), torch.rand(4, 8)
    q = octavo.quantize(model, x, mode="dynamic", progress=False)
    assert sqnr_db(q.lower("reference")(x), q.lower(runtime)(x)) > 60
