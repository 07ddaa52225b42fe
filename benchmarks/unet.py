"""A network that segments images (Ronneberger et al. 2015, arXiv:1505.04597), half as wide."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

WIDTHS = (32, 64, 128, 256)
CLASSES = 2


class UNet(nn.Module):
    """float32 ``[N, channels, height, width]`` -> ``[N, classes, height, width]``.

    Height and width are multiples of 2 for each width behind the first.
    """

    def __init__(
        self, channels: int = 3, widths: tuple[int, ...] = WIDTHS, classes: int = CLASSES
    ) -> None:
        super().__init__()
        sizes = (channels, *widths)
        self.down = nn.ModuleList(map(_twice, sizes[:-1], sizes[1:]))
        self.pool = nn.MaxPool2d(2)
        upwards = widths[::-1]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(wide, narrow, 2, stride=2) for wide, narrow in pairwise(upwards)
        )
        self.join = nn.ModuleList(_twice(2 * width, width) for width in upwards[1:])
        self.scores = nn.Conv2d(widths[0], classes, 1)

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
