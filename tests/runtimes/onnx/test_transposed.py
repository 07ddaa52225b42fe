"""Transposed convolutions of blocks as convolutions of one pixel, on integers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import octavo

BLOCKS = {
    "with a bias": {"kernel_size": 2, "stride": 2},
    "without": {"kernel_size": 2, "stride": 2, "bias": False},
    "blocks that are no squares": {"kernel_size": (3, 2), "stride": (3, 2)},
}
OTHERS = {
    "blocks that meet": {"kernel_size": 4, "stride": 2, "padding": 1},
    "groups": {"kernel_size": 2, "stride": 2, "groups": 2},
    "gaps": {"kernel_size": 2, "stride": 3},
    "a cut edge": {"kernel_size": 2, "stride": 2, "padding": 1},
}


def lowered(settings: dict, activation: nn.Module, x: torch.Tensor) -> octavo.QuantizedModel:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(6, 4, **settings)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), up, activation, nn.Conv2d(4, 5, 3), nn.ReLU()
    )
    return octavo.quantize(net, calibration=[x], target="onnxruntime", progress=False)


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.ReLU6()])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_layer_of_blocks_runs_on_integers(name: str, activation: nn.Module) -> None:
    x = torch.randn(2, 3, 7, 9)
    q = lowered(BLOCKS[name], activation, x)
    run = q.lower("onnxruntime")
    assert run.lowered.kernels["2"] == "onnxruntime QLinearConv"
    other = torch.randn(3, 3, 11, 8)  # sizes that are open
    for images in (x, other):
        torch.testing.assert_close(run(images), q.lower("reference")(images), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_others_stay_what_they_are(name: str) -> None:
    x = torch.randn(2, 3, 7, 9)
    q = lowered(OTHERS[name], nn.ReLU(), x)
    run = q.lower("onnxruntime")
    assert "2" in run.lowered.fallbacks
    torch.testing.assert_close(run(x), q.lower("reference")(x), atol=1e-6, rtol=1e-5)
