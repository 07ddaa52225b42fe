"""Where the corners of a digit's frame lie: a regression on hard digits.

A view of a digit is turned, stretched, sheared and moved (`hard_digits.placed`); the four corners
of the digit's own square image lie somewhere in the view, or a bit outside, and the network says
where.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import hard_digits, training
from benchmarks.hard_digits import HardDigits

RECIPE = 1  # raise it when the data, the network or the training changes
NETWORK, EPOCHS = "small keypoint net", 60
PIXELS = hard_digits.SIZE / 2  # of a step of 1: places go from -1 to 1
_CORNERS = torch.tensor([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])


class KeypointNet(nn.Module):
    """float32 ``[N, 1, 32, 32]`` -> the places of the corners, ``[N, 8]``: x and y of each."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((1, *widths), widths, strict=False):
            for channels, stride in ((before, 2), (after, 1)):
                layers += [nn.Conv2d(channels, after, 3, stride, 1, bias=False)]
                layers += [nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        left = hard_digits.SIZE // 2 ** len(widths)
        self.hidden = nn.Linear(widths[-1] * left * left, 128)
        self.places = nn.Linear(128, 2 * len(_CORNERS))

    def forward(self, x: Tensor) -> Tensor:
        places: Tensor = self.places(F.relu(self.hidden(self.features(x).flatten(1))))
        return places


def network(data: HardDigits) -> nn.Module:
    """Trained in about a minute on one core, or from the cache."""

    def views(chosen: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        return seen(data.digits[chosen], chance)

    return training.trained(
        NETWORK,
        KeypointNet,
        views,
        len(data.digits),
        recipe=RECIPE,
        epochs=EPOCHS,
        loss=F.l1_loss,
    )


def test_of(data: HardDigits) -> tuple[Tensor, Tensor]:
    """Views of digits that training has not seen, and where their corners lie."""
    chance = torch.Generator().manual_seed(1)
    found = [seen(data.test_digits, chance) for _ in range(hard_digits.VIEWS)]
    images, places = zip(*found, strict=True)
    return torch.cat(images), torch.cat(places)


def seen(digits: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Views of the digits, and where the corners of their frames lie in them, ``[N, 8]``."""
    places = hard_digits.placed(len(digits), chance)
    return hard_digits.seen(digits, places, chance), corners(places)


def corners(places: Tensor) -> Tensor:
    """Where the corners of a digit's image lie in its view, ``[N, 8]``."""
    turned, moved = places[:, :, :2], places[:, :, 2:]
    return torch.linalg.solve(turned, _CORNERS.t() - moved).transpose(1, 2).flatten(1)


def distances(answers: Tensor, places: Tensor) -> Tensor:
    """In pixels, the mean over a view's corners: ``[N]``."""
    apart = (answers.double() - places.double()).view(-1, len(_CORNERS), 2)
    return PIXELS * apart.norm(dim=2).mean(1)
