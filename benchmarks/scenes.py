"""scikit-learn's real digits composed into scenes, and a U-Net that says what each pixel shows.

A scene has a digit in each of its quarters, three times in four: turned, sized and moved a bit, on
a background whose brightness changes from place to place, with noise over all. A pixel belongs to
the digit whose ink it has, or to the background.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import training
from benchmarks.hard_digits import BATCH, CALIBRATION_IMAGES, HardDigits
from benchmarks.nets import CLASSES as DIGITS
from benchmarks.unet import UNet

RECIPE = 1  # raise it when the data, the network or the training changes
NETWORK, EPOCHS = "small U-Net", 40
SIZE, QUARTERS, CLASSES = 48, 4, DIGITS + 1  # the first class is the background
TEST_SCENES = 1000
INK = 0.4  # from which on a pixel is the digit's
_CENTERS = torch.tensor([(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)])


def network(data: HardDigits) -> nn.Module:
    """Trained in about two minutes on one core, or from the cache."""

    def views(chosen: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        return composed(data.digits[chosen], data.digit_labels[chosen], chance)

    return training.trained(
        NETWORK,
        partial(UNet, channels=1, widths=(16, 32, 64), classes=CLASSES),
        views,
        len(data.digits),
        recipe=RECIPE,
        epochs=EPOCHS,
        in_bf16=True,
    )


def test_of(data: HardDigits) -> tuple[Tensor, Tensor]:
    """Scenes of digits that training has not seen, and the class of each pixel."""
    chance = torch.Generator().manual_seed(1)
    chosen = torch.randint(len(data.test_digits), (TEST_SCENES * QUARTERS,), generator=chance)
    return composed(data.test_digits[chosen], data.test_digit_labels[chosen], chance)


def calibration_of(data: HardDigits, draw: int) -> list[Tensor]:
    """Batches of scenes of the training digits, other ones for each draw."""
    chance = torch.Generator().manual_seed(100 + draw)
    some = torch.randperm(len(data.digits), generator=chance)[: CALIBRATION_IMAGES * QUARTERS]
    scenes, _ = composed(data.digits[some], data.digit_labels[some], chance)
    return list(scenes.split(BATCH))


def composed(digits: Tensor, labels: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scenes ``[N, 1, 48, 48]`` of four digits each, and the class of each pixel."""
    count = len(digits)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=chance)

    angle, size = between(-0.4, 0.4, count), between(0.35, 0.6, count)
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1)
    turned = turned.view(-1, 2, 2) / size.view(-1, 1, 1)
    center = _CENTERS.repeat(count // QUARTERS, 1) + between(-0.15, 0.15, count, 2)
    places = torch.cat([turned, -turned @ center.unsqueeze(2)], 2)
    grid = F.affine_grid(places, [count, 1, SIZE, SIZE], align_corners=False)
    there = (torch.rand(count, 1, 1, 1, generator=chance) < 0.75).float()
    ink = there * F.grid_sample(digits, grid, align_corners=False)
    strongest, which = ink.view(-1, QUARTERS, SIZE, SIZE).max(1, keepdim=True)
    of_digits = labels.view(-1, QUARTERS)[:, :, None, None].expand(-1, -1, SIZE, SIZE)
    classes = torch.where(strongest > INK, of_digits.gather(1, which) + 1, 0).squeeze(1)
    scenes = len(strongest)
    coarse = between(-0.6, 0.6, scenes, 1, 4, 4)
    background = F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
    noise = torch.randn(strongest.shape, generator=chance)
    contrast = between(1.0, 2.0, scenes, 1, 1, 1)
    return contrast * strongest - 1 + background + 0.4 * noise, classes
