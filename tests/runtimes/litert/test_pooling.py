"""Pooling, and what is written as a depthwise convolution, on LiteRT."""

from __future__ import annotations

import pytest
import torch
from litert_models import Between
from sweeping import swept
from torch import nn

import octavo

IMAGE = (2, 3, 12, 16)
DEPTHWISE = "DEPTHWISE_CONV_2D int8"
CASES = {
    "largest": (nn.MaxPool2d(2), {"MAX_POOL_2D int8"}),
    "largest, padded alike": (nn.MaxPool2d(3, 1, 1), {"MAX_POOL_2D int8"}),
    "largest, padded": (nn.MaxPool2d(3, 2, 1), {"MAX_POOL_2D int8", "PADV2 int8"}),
    "largest, over the edge": (
        nn.MaxPool2d(5, 5, ceil_mode=True),
        {"MAX_POOL_2D int8", "PADV2 int8"},
    ),
    "average": (nn.AvgPool2d(2), {DEPTHWISE}),
    "average that counts padding": (nn.AvgPool2d(3, 2, 1), {DEPTHWISE, "PAD int8"}),
    "average of all": (nn.AdaptiveAvgPool2d(1), {"MEAN int8"}),
    "average of parts": (nn.AdaptiveAvgPool2d((3, 4)), {DEPTHWISE}),
    "average of parts that overlap": (nn.AdaptiveAvgPool2d((4, 3)), {DEPTHWISE}),
}


KEPT = ["largest, padded", "average that counts padding", "average of parts that overlap"]


@pytest.mark.parametrize("name", swept(CASES, KEPT))
def test_pooling_of_integers(name, agrees):
    layer, operators = CASES[name]
    found = agrees(Between(layer), torch.randn(IMAGE)).operators
    assert found - {"CONV_2D int8"} == operators


def test_a_norm_that_is_not_folded_is_a_convolution(agrees):
    norm = nn.BatchNorm2d(8)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    found = agrees(Between(nn.Sequential(nn.MaxPool2d(2), norm)), torch.randn(IMAGE)).operators
    assert "DEPTHWISE_CONV_2D int8" in found


def test_windows_of_several_sizes_are_refused(refusal):
    words = refusal(Between(nn.AdaptiveAvgPool2d(5)), torch.randn(IMAGE))
    assert "it makes [5, 5] of [12, 16], which windows of one size do not" in words


@pytest.mark.parametrize(
    "pooling",
    [
        nn.AvgPool2d(3, 1, 1, count_include_pad=False, divisor_override=5),
        nn.AvgPool2d(5, 2, 1, ceil_mode=True),
    ],
    ids=["divisor", "padding that counts"],
)
def test_averages_in_float_that_divide_by_other_numbers_are_refused(pooling, refusal):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), pooling, nn.SiLU())
    rules = octavo.QConfigMapping().set_module_name("2", None)
    words = refusal(net, torch.randn(2, 3, 12, 16), qconfig=rules)
    assert "its averages leave out the padding" in words
