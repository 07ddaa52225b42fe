"""Pixels to integers in one kernel: the oracle's integers, whatever the layout and the range."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import octavo
from octavo.graph.pixels import Pixels
from octavo.numerics import octavo_operators
from octavo.runtimes.integers import Integers
from octavo.runtimes.torch import pixel_quantization

PIXELS = Pixels(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CENTRED = Pixels(1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# As wide as the pixels' own values, narrower, of seven bits, and one that hardly holds any.
RANGES = {
    "whole": Integers(4.76 / 255, 114, 0, 255, torch.uint8),
    "narrow": Integers(2 / 255, 100, 0, 255, torch.uint8),
    "seven bits": Integers(4.76 / 127, 57, 0, 127, torch.uint8),
    "tiny": Integers(1e-7, 3, 0, 255, torch.uint8),
    "halves": Integers(2 / 255, 127, 0, 255, torch.uint8),  # of centred pixels all are
}


def every_pixel(channels: int = 3) -> torch.Tensor:
    """Each value in each channel: ``[2, channels, 16, 16]``."""
    values = torch.arange(256, dtype=torch.uint8).view(16, 16)
    return torch.stack([values, values.flip(0)])[:, None].repeat(1, channels, 1, 1)


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("normalized", [PIXELS, CENTRED])
def test_all_values_against_the_oracle(name, channels_last, normalized):
    out, x = RANGES[name], every_pixel()
    order = torch.channels_last if channels_last else torch.contiguous_format
    got = pixel_quantization.quantize_pixels(*normalized.constants(3), out)(
        x.contiguous(memory_format=order)
    )
    expected = octavo_operators.quantize(
        normalized.normalized(x), out.scale, out.zero_point, out.low, out.high, torch.uint8
    )
    assert torch.equal(got, expected)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_blocks_cover_all_rows_of_any_layout(channels, monkeypatch):
    kernel = pixel_quantization.quantize_pixels(*Pixels().constants(channels), RANGES["whole"])
    x = torch.randint(0, 256, (5, channels, 12, 10), dtype=torch.uint8)
    whole = kernel(x)
    monkeypatch.setattr(pixel_quantization, "_BLOCK", 2 * channels * 120)
    last = x.contiguous(memory_format=torch.channels_last)
    for same in (x, last, x.repeat(1, 1, 1, 2)[..., :10], x.transpose(2, 3)):
        fits = whole if same.shape == x.shape else whole.transpose(2, 3)
        assert torch.equal(kernel(same), fits)
    assert kernel(x[:0]).shape == (0, channels, 12, 10)


def test_a_quantized_model_uses_the_kernel(monkeypatch):
    images, seen = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), []
    kernel = pixel_quantization.quantize_pixels

    def watched(*args):
        seen.append(args)
        return kernel(*args)

    monkeypatch.setattr(pixel_quantization, "quantize_pixels", watched)
    net = nn.Conv2d(3, 8, 3, padding=1)
    q = octavo.quantize(
        net, calibration=[images], target=octavo.host_target(), input_mean=PIXELS.mean
    )
    assert len(seen) == 1
    exact = q.lower("reference")(images)
    assert (q(images) - exact).norm() < exact.norm() / 500


def test_what_computes_something_else_is_left_alone():
    """A model's own arithmetic on uint8: with a factor for all channels, and with a weight."""

    class Own(nn.Module):
        def __init__(self, factor) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.factor = nn.Parameter(factor)

        def forward(self, x):
            return self.conv(x.float() * self.factor + self.factor)

    x = every_pixel()
    for factor in (torch.tensor(0.1), torch.rand(3, 16, 16)):
        q = octavo.quantize(Own(factor), calibration=[x], target=octavo.host_target())
        exact = q.lower("reference")(x)
        assert (q(x) - exact).norm() < exact.norm() / 100
