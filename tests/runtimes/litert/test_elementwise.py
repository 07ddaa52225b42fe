"""Operators on each value by itself, and over axes, on LiteRT."""

from __future__ import annotations

import pytest
import torch
from litert_models import Between
from sweeping import swept
from torch import nn
from torch.nn import functional as F

ON_INTEGERS = {
    "add": (lambda x, y: x + y, "ADD int8"),
    "sub": (lambda x, y: x - y, "SUB int8"),
    "mul": (lambda x, y: x * y, "MUL int8"),
    "add and relu": (lambda x, y: (x + y).relu(), "ADD int8"),
    "sigmoid": (lambda x: x.sigmoid(), "LOGISTIC int8"),
    "tanh": (lambda x: x.tanh(), "TANH int8"),
    "gelu": (lambda x: F.gelu(x), "GELU int8"),
    "softmax": (lambda x: x.softmax(-1), "SOFTMAX int8"),
    "softmax of channels": (lambda x: x.softmax(1), "SOFTMAX int8"),
    "mean": (lambda x: x.mean((2, 3)), "MEAN int8"),
    "mean of channels": (lambda x: x.mean(1, keepdim=True), "MEAN int8"),
    "largest": (lambda x: x.amax((2, 3)), "REDUCE_MAX int8"),
    "scaled by channel": (lambda x, y: x * y.mean((2, 3), keepdim=True), "MUL int8"),
}
IN_FLOAT = {
    "leaky relu": (lambda x: F.leaky_relu(x, 0.1), "LEAKY_RELU float32"),
    "silu": (lambda x: F.silu(x), "LOGISTIC float32"),
    "hardswish": (lambda x: F.hardswish(x), "HARD_SWISH float32"),
    "hard sigmoid": (lambda x: F.hardsigmoid(x), "RELU6 float32"),
    "bilinear": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        "RESIZE_BILINEAR float32",
    ),
    "bilinear, corners aligned": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
        "RESIZE_BILINEAR float32",
    ),
    "a number": (lambda x: x * 0.3 + 1, "MUL float32"),
}


@pytest.mark.parametrize("name", swept(ON_INTEGERS, ["add and relu", "scaled by channel"]))
def test_functions_on_integers(name, agrees):
    function, operator = ON_INTEGERS[name]
    found = agrees(Between(function), torch.randn(2, 3, 6, 8))
    assert operator in found.operators
    assert all(kind.endswith("int8") for kind in found.operators), found.kernels


@pytest.mark.parametrize("name", swept(IN_FLOAT, ["silu", "hardswish", "a number"]))
def test_functions_between_integers_that_litert_rounds_otherwise(name, agrees):
    function, operator = IN_FLOAT[name]
    found = agrees(Between(function), torch.randn(2, 3, 6, 8))
    assert operator in found.operators


def test_files_for_boards_have_hardswish_on_integers(litert):
    from octavo.runtimes.litert.export import to_tflite

    q = litert(Between(lambda x: F.hardswish(x)), torch.randn(2, 3, 6, 8)).model
    written = to_tflite(q.graph, full_integer=True)
    kinds = {kind for kinds in written.kernels.values() for kind in kinds}
    assert "HARD_SWISH int8" in kinds
    assert all(kind.endswith("int8") for kind in kinds)


def test_a_clip_alone_cuts_where_its_result_has_a_wider_range(agrees):
    wide = Between(
        lambda x, y: torch.cat([F.hardtanh(F.max_pool2d(x, 2), -0.3, 0.2), y[..., 1::2, 1::2]], 1)
    )
    found = agrees(wide, torch.randn(2, 3, 6, 8))
    assert {"MAXIMUM int8", "MINIMUM int8"} <= found.operators


@pytest.mark.parametrize("name", ["where", "masked_fill"])
def test_a_mask_of_the_last_axis_of_as_many_channels(name, agrees):
    """Which stands before the channels in the file, though it would fit there too."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.before = nn.Conv2d(3, 8, 3, padding=1)
            self.register_buffer("mask", torch.arange(8) < 3)

        def forward(self, x):
            x = self.before(x)
            return torch.where(self.mask, x, -x) if name == "where" else x.masked_fill(self.mask, 2)

    agrees(Masked(), torch.randn(2, 3, 8, 8))
