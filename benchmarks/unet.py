"""A network that segments images (Ronneberger et al. 2015, arXiv:1505.04597), half as wide."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

WIDTHS = (32, 64, 128, 256)
CLASSES = 2


class UNet(nn.Module):
    """float32 ``[N, 3, height, width]``, both multiples of 8 -> ``[N, 2, height, width]``."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, *WIDTHS)
        self.down = nn.ModuleList(map(_twice, sizes[:-1], sizes[1:]))
        self.pool = nn.MaxPool2d(2)
        upwards = WIDTHS[::-1]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(wide, narrow, 2, stride=2) for wide, narrow in pairwise(upwards)
        )
        self.join = nn.ModuleList(_twice(2 * width, width) for width in upwards[1:])
        self.scores = nn.Conv2d(WIDTHS[0], CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for level in self.down:
            x = level(self.pool(x) if seen else x)
            seen.append(x)
        for up, join, skipped in zip(self.up, self.join, seen[-2::-1], strict=True):
            x = join(torch.cat([skipped, up(x)], 1))
        scores: Tensor = self.scores(x)
        return scores


def _twice(before: int, after: int) -> nn.Module:
    """Two convolutions, each with batch statistics."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
