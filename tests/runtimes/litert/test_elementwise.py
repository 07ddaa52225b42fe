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
    "softplus": (lambda x: 2 * F.softplus(40 * x, beta=0.7), "LOG float32"),
    "mish": (lambda x: 2 * F.mish(x), "TANH float32"),
    "log sigmoid": (lambda x: 2 * F.logsigmoid(x), "NEG float32"),
    "largest of an axis": (lambda x: x.max(1).values, "REDUCE_MAX float32"),
    "larger of two": (lambda x, y: 2 * torch.max(x, y), "MAXIMUM float32"),
    "largest of all": (lambda x: x + x.max(), "REDUCE_MAX float32"),
    "sums so far": (lambda x: 2 * x.cumsum(2), "CUMSUM float32"),
    "of length one": (lambda x: F.normalize(x, dim=1), "SQRT float32"),
    "of sum one": (lambda x: F.normalize(x, p=1, dim=-1), "ABS float32"),
    "cosine": (lambda x, y: 2 * F.cosine_similarity(x, y, dim=1), "DIV float32"),
    "instance norm": (lambda x: 2 * F.instance_norm(x), "RSQRT float32"),
}


@pytest.mark.parametrize("name", swept(ON_INTEGERS, ["add and relu", "scaled by channel"]))
def test_functions_on_integers(name, agrees):
    function, operator = ON_INTEGERS[name]
    found = agrees(Between(function), torch.randn(2, 3, 6, 8))
    assert operator in found.operators
    assert all(kind.endswith("int8") for kind in found.operators), found.kernels


@pytest.mark.parametrize(
    "name", swept(IN_FLOAT, ["silu", "hardswish", "a number", "largest of an axis", "softplus"])
)
def test_functions_between_integers_that_litert_rounds_otherwise(name, agrees):
    function, operator = IN_FLOAT[name]
    found = agrees(Between(function), torch.randn(2, 3, 6, 8))
    assert operator in found.operators


def test_the_largest_values_of_an_axis_and_their_places(litert):
    """Of distinct ones: which of two equal ones comes first is a runtime's own."""
    from octavo.runtimes.litert.export import to_tflite
    from octavo.runtimes.litert.interpreter import Program

    net = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), Largest())
    net[0].weight.data.fill_(1.0)
    x = torch.stack([torch.arange(30.0), torch.arange(30.0).roll(7)])[:, None]
    q = litert(net, x).model
    with torch.no_grad():
        expected = net(x[1:])
    found = Program(to_tflite(q.graph)).run([x[1:]])
    for index in (0, 2):  # values, then places
        assert (found[index] - expected[index]).abs().max() < 0.1
        assert torch.equal(found[index + 1], expected[index + 1])


class Largest(nn.Module):
    def forward(self, x):
        return *x.topk(4, -1), *x.min(-1, keepdim=True)


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
