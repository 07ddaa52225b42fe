"""A network that reads a line of text: convolutions, then two bidirectional LSTMs.

It is built as the readers of EasyOCR are (Shi et al. 2015, arXiv:1507.05717), with random weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHARACTERS = 97
HEIGHT, LENGTH = 64, 320
WIDTH = 256


class Columns(nn.Module):
    """Gray images ``[N, 1, 64, length]`` -> features of their columns ``[N, WIDTH, 3, steps]``."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c = WIDTH // 8, WIDTH // 4, WIDTH // 2
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, a, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(c, c, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d((2, 1))),
            *_normalized(c, WIDTH),
            *_normalized(WIDTH, WIDTH),
            nn.MaxPool2d((2, 1)),
            *(nn.Conv2d(WIDTH, WIDTH, 2), nn.ReLU(inplace=True)),
        )

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x)
        return features


def _normalized(before: int, after: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)


class BothWays(nn.Module):
    """``[N, steps, WIDTH]`` -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.linear(self.lstm(x)[0])
        return mixed


class Reader(nn.Module):
    """Gray images ``[N, 1, 64, length]`` -> scores of characters ``[N, steps, CHARACTERS]``."""

    def __init__(self) -> None:
        super().__init__()
        self.columns = Columns()
        self.sequence = nn.Sequential(BothWays(), BothWays())
        self.scores = nn.Linear(WIDTH, CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.columns(x).permute(0, 3, 1, 2).mean(3)
        scores: Tensor = self.scores(self.sequence(steps))
        return scores


def lines(count: int) -> Tensor:
    """Strokes on paper, as a line of text has them: float32 ``[count, 1, 64, 320]``."""
    chance = torch.Generator().manual_seed(0)
    strokes = (torch.rand(count, 1, HEIGHT // 8, LENGTH // 8, generator=chance) > 0.6).float()
    drawn = F.interpolate(strokes, scale_factor=8.0, mode="bilinear")
    return 0.8 - 1.4 * drawn + 0.1 * torch.randn(drawn.shape, generator=chance)
