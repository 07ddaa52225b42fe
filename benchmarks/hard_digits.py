"""scikit-learn's real digits, made hard, and networks trained on them.

Each 8x8 image is scaled to 32x32, turned, stretched, moved and covered with noise. The test images
are always the same ones, several views of each digit that training has not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks import training
from benchmarks.nets import SEED

RECIPE = 1  # raise it when the data, a network or the training changes: the cache is then stale
SIZE = 32
TEST_DIGITS, VIEWS = 500, 16
CALIBRATION_IMAGES, BATCH = 256, 32


@dataclass(frozen=True)
class HardDigits:
    """Images ``[N, 1, 32, 32]`` and labels; ``digits`` are the clean ones to train on, and
    ``test_digits`` those of which the test has views.
    """

    digits: Tensor
    digit_labels: Tensor
    test_digits: Tensor
    test_digit_labels: Tensor
    test: Tensor
    test_labels: Tensor
    calibration: list[Tensor]


def load() -> HardDigits:
    """The data, equal on every machine up to the rounding of its floats."""
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    images = F.interpolate(images, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1)
    labels = torch.from_numpy(data.target).long()
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
    test, train = order[:TEST_DIGITS], order[TEST_DIGITS:]
    chance = torch.Generator().manual_seed(1)
    calibration = hardened(images[train][:CALIBRATION_IMAGES], chance)
    views = torch.cat([hardened(images[test], chance) for _ in range(VIEWS)])
    return HardDigits(
        digits=images[train],
        digit_labels=labels[train],
        test_digits=images[test],
        test_digit_labels=labels[test],
        test=views,
        test_labels=labels[test].repeat(VIEWS),
        calibration=list(calibration.split(BATCH)),
    )


def calibration_of(data: HardDigits, draw: int) -> list[Tensor]:
    """Other batches to calibrate with: as many images of the training digits, drawn anew."""
    if draw == 0:
        return data.calibration
    chance = torch.Generator().manual_seed(100 + draw)
    some = torch.randperm(len(data.digits), generator=chance)[:CALIBRATION_IMAGES]
    return list(hardened(data.digits[some], chance).split(BATCH))


def hardened(images: Tensor, chance: torch.Generator) -> Tensor:
    """Each image turned (30 degrees), stretched (0.65 to 1.5), sheared, moved (5 pixels), noisy."""
    return seen(images, placed(len(images), chance), chance)


def placed(count: int, chance: torch.Generator) -> Tensor:
    """Places in a view -> places in the digit's image, both from -1 to 1: ``[count, 2, 3]``."""

    def between(limit: float) -> Tensor:
        return limit * (2 * torch.rand(count, generator=chance) - 1)

    angle, shear = between(torch.pi / 6), between(0.3)
    wide, high = between(0.4).exp(), between(0.4).exp()
    move = 2 * 5 / SIZE
    rows = (
        torch.stack([wide * angle.cos(), shear - high * angle.sin(), between(move)], dim=1),
        torch.stack([wide * angle.sin(), high * angle.cos(), between(move)], dim=1),
    )
    return torch.stack(rows, dim=1)


def seen(images: Tensor, places: Tensor, chance: torch.Generator) -> Tensor:
    """Views of the images, each placed so, with noise."""
    grid = F.affine_grid(places, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False)
    noise = torch.randn(moved.shape, generator=chance)
    return (moved + 0.25 * noise) * 2 - 1


def trained(
    name: str,
    make: Callable[[], nn.Module],
    data: HardDigits,
    epochs: int = 80,
    learning_rate: float = 4e-3,
    batch: int = 128,
    seed: int = SEED,
    cache: Path = training.CACHE,
) -> nn.Module:
    """The network of this name that tells digits, see `training.trained`."""

    def views(chosen: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        return hardened(data.digits[chosen], chance), data.digit_labels[chosen]

    return training.trained(
        name,
        make,
        views,
        len(data.digits),
        recipe=RECIPE,
        epochs=epochs,
        learning_rate=learning_rate,
        batch=batch,
        seed=seed,
        cache=cache,
    )
