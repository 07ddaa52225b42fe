"""Convolutions and linear layers on LiteRT: the oracle's integers, by the operator meant for it."""

from __future__ import annotations

import pytest
import torch
from sweeping import swept
from torch import nn

IMAGE, LINE, ROWS = (2, 4, 9, 10), (2, 4, 15), (5, 7)
CONV, DEPTHWISE = "CONV_2D int8", "DEPTHWISE_CONV_2D int8"
TRANSPOSED = "TRANSPOSE_CONV int8"

CASES = {
    "padded alike": (nn.Conv2d(4, 6, 3, padding=1), IMAGE, {CONV}),
    "unpadded": (nn.Conv2d(4, 6, 3, bias=False), IMAGE, {CONV}),
    "more padded than LiteRT would": (nn.Conv2d(4, 6, 3, padding=2), IMAGE, {CONV, "PAD int8"}),
    "strided": (nn.Conv2d(4, 6, (3, 5), (2, 1), (1, 2)), IMAGE, {CONV}),
    "strided over even sizes": (
        nn.Conv2d(4, 6, 3, 2, 1),
        (2, 4, 10, 10),
        {CONV, "PAD int8"},
    ),
    "dilated": (nn.Conv2d(4, 6, 3, padding=2, dilation=2), IMAGE, {CONV}),
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), IMAGE, {CONV}),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), IMAGE, {DEPTHWISE}),
    "two for each channel": (nn.Conv2d(4, 8, 3, padding=1, groups=4), IMAGE, {DEPTHWISE}),
    "with relu": (nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()), IMAGE, {CONV}),
    "with relu6": (nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU6()), IMAGE, {CONV}),
    "of a line": (nn.Conv1d(4, 6, 3, padding=1), LINE, {CONV, "RESHAPE int8", "TRANSPOSE int8"}),
    "transposed": (nn.ConvTranspose2d(4, 6, 4, 2, 1), IMAGE, {TRANSPOSED}),
    "transposed without overlap": (nn.ConvTranspose2d(4, 6, 2, 2), IMAGE, {TRANSPOSED}),
    "transposed and cut": (
        nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1),
        IMAGE,
        {TRANSPOSED, "SLICE int8"},
    ),
    "transposed in groups": (nn.ConvTranspose2d(4, 8, 4, 2, 1, groups=2), IMAGE, {TRANSPOSED}),
    "transposed by channels, dilated": (
        nn.ConvTranspose2d(4, 4, (3, 2), 2, groups=4, dilation=(2, 3)),
        IMAGE,
        {TRANSPOSED},
    ),
    "linear": (nn.Linear(7, 9), ROWS, {"FULLY_CONNECTED int8"}),
    "linear on tokens": (nn.Linear(7, 9, bias=False), (2, 5, 7), {"FULLY_CONNECTED int8"}),
}


KEPT = [
    "padded alike",
    "more padded than LiteRT would",
    "depthwise",
    "transposed and cut",
    "transposed by channels, dilated",
    "linear on tokens",
]


@pytest.mark.parametrize("name", swept(CASES, KEPT))
def test_a_layer_is_one_operator_on_integers(name, agrees):
    layer, shape, operators = CASES[name]
    assert agrees(layer, torch.randn(shape) * 2).operators == operators
