"""A small data set in the file format of Flowers102: four colours of flowers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")
scipy_io = pytest.importorskip("scipy.io")

COLOURS = ((220, 30, 30), (30, 200, 40), (40, 40, 220), (230, 220, 40))
FOLDER = "flowers-102"


def write_flowers(folder: Path) -> None:
    """The files of the data set: images, labels from 1, and which image is in which part."""
    base = folder / FOLDER
    (base / "jpg").mkdir(parents=True)
    random = np.random.default_rng(0)
    labels = np.arange(32) % len(COLOURS) + 1
    for number, label in enumerate(labels, start=1):
        pixels = random.integers(0, 80, (80, 80, 3))
        rows, columns = np.ogrid[:80, :80]
        middle = random.integers(30, 50, 2)
        disc = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < 22**2
        pixels[disc] = np.array(COLOURS[label - 1]) + random.integers(-25, 25, (disc.sum(), 3))
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(base / "jpg" / f"image_{number:05d}.jpg")
    scipy_io.savemat(base / "imagelabels.mat", {"labels": labels[None]})
    parts = {"trnid": np.arange(1, 21), "valid": np.arange(21, 23), "tstid": np.arange(17, 33)}
    scipy_io.savemat(base / "setid.mat", {key: ids[None] for key, ids in parts.items()})


def accept_flowers(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let torchvision take these files for the real ones, whose checksums it knows."""
    data = pytest.importorskip("torchvision").datasets.Flowers102
    checksums = {
        key: (name, _md5(folder / FOLDER / name)) for key, (name, _) in data._file_dict.items()
    }
    patch.setattr(data, "_file_dict", checksums)


def _md5(path: Path) -> str | None:
    return hashlib.md5(path.read_bytes()).hexdigest() if path.exists() else None
