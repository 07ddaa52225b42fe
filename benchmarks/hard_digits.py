"""scikit-learn's real digits, made hard, and networks trained on them.

Each 8x8 image is scaled to 32x32, turned, stretched, moved and covered with noise. The test images
are always the same ones, several views of each digit that training has not seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.nets import SEED, seeded
from octavo.progress import track

CACHE = Path(__file__).parent / ".cache"
RECIPE = 1  # raise it when the data, a network or the training changes: the cache is then stale
SIZE = 32
TEST_DIGITS, VIEWS = 500, 16
CALIBRATION_IMAGES, BATCH = 256, 32


@dataclass(frozen=True)
class HardDigits:
    """Images ``[N, 1, 32, 32]`` and labels; ``digits`` are the clean ones to train on."""

    digits: Tensor
    digit_labels: Tensor
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
    count = len(images)

    def between(limit: float) -> Tensor:
        return limit * (2 * torch.rand(count, generator=chance) - 1)

    angle, shear = between(torch.pi / 6), between(0.3)
    wide, high = between(0.4).exp(), between(0.4).exp()
    move = 2 * 5 / SIZE
    rows = (
        torch.stack([wide * angle.cos(), shear - high * angle.sin(), between(move)], dim=1),
        torch.stack([wide * angle.sin(), high * angle.cos(), between(move)], dim=1),
    )
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
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
    cache: Path = CACHE,
) -> nn.Module:
    """The network of this name in evaluation mode: from the cache, or trained now.

    ``seed`` is that of its weights at the start, ``cache`` the folder of trained weights.
    """
    file = cache / f"{name.replace(' ', '-')}-recipe{RECIPE}-{epochs}.safetensors"
    net = seeded(make, seed)
    if file.exists():
        net.load_state_dict(load_file(file))
        return net.eval()
    started = time.perf_counter()
    _train(net, data, epochs, learning_rate, batch)
    print(f"trained {name} in {time.perf_counter() - started:.0f} s", flush=True)
    cache.mkdir(exist_ok=True)
    save_file(net.state_dict(), file)
    return net.eval()


def _train(net: nn.Module, data: HardDigits, epochs: int, learning_rate: float, batch: int) -> None:
    """AdamW with a one-cycle learning rate; new views of all digits in each epoch."""
    chance = torch.Generator().manual_seed(2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=2e-2)
    steps = epochs * (len(data.digits) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    net.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)  # for dropout
        for _ in track(range(epochs), "training"):
            order = torch.randperm(len(data.digits), generator=chance)
            for chosen in order.split(batch)[: len(data.digits) // batch]:
                scores = net(hardened(data.digits[chosen], chance))
                loss = F.cross_entropy(scores, data.digit_labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
