"""Operators that move values, on LiteRT: the oracle's integers, and no float between."""

from __future__ import annotations

import pytest
import torch
from litert_models import Between
from sweeping import swept
from torch import nn
from torch.nn import functional as F

CASES = {
    "flatten": lambda x: x.flatten(1),
    "flatten of height and width": lambda x: x.flatten(2),
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "view": lambda x: x.view(x.shape[0], 2, 4, 6, 8),
    "cat of channels": lambda x, y: torch.cat([x, y], 1),
    "cat of rows": lambda x, y: torch.cat([x, y], 2),
    "stack": lambda x, y: torch.stack([x, y], 1),
    "slice": lambda x: x[:, 1:7:2, 1:],
    "select": lambda x: x[:, 2],
    "chunks": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "split": lambda x: x.split([3, 5], 1)[1],
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "reflect": lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"),
    "flip": lambda x: x.flip(2),
    "roll": lambda x: x.roll((1, -2), (2, 3)),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "expand": lambda x: x[:, :1].expand(-1, 8, -1, -1),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "windows": lambda x: x.unfold(3, 4, 2),
    "channel shuffle": lambda x: x.view(-1, 2, 4, 6, 8).transpose(1, 2).reshape(-1, 8, 6, 8),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
}


KEPT = ["tokens", "cat of channels", "slice", "split"]


@pytest.mark.parametrize("name", swept(CASES, KEPT))
def test_integers_are_moved_as_integers(name, agrees):
    found = agrees(Between(CASES[name]), torch.randn(2, 3, 6, 8))
    assert all(kind.endswith("int8") for kind in found.operators), found.kernels


def test_flattening_of_single_pixels_moves_nothing(agrees):
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    found = agrees(Between(pooled), torch.randn(2, 3, 6, 8))
    assert found.operators == {
        *("CONV_2D int8", "MEAN int8", "RESHAPE int8", "FULLY_CONNECTED int8")
    }
    assert found.kernels["function.1"] == ["RESHAPE int8"]


def test_tokens_of_an_image_move_nothing(agrees):
    found = agrees(Between(CASES["tokens"]), torch.randn(2, 3, 6, 8))
    assert found.operators == {"CONV_2D int8", "RESHAPE int8"}


def test_padding_by_the_edge_is_refused(refusal):
    edge = Between(lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"))
    words = refusal(edge, torch.randn(2, 3, 6, 8))
    assert "it pads by 'replicate'; LiteRT has constant and reflect" in words


def test_padding_by_a_number_is_rounded(agrees):
    padded = nn.Sequential(nn.ConstantPad2d((1, 0, 2, 0), 0.7), nn.Conv2d(8, 4, 3))
    found = agrees(Between(padded), torch.randn(2, 3, 6, 8))
    assert "PADV2 int8" in found.operators
