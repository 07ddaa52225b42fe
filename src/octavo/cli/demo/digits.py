"""Real handwritten digits as batches: scikit-learn's, scaled to 28x28, or MNIST where it lies.

Images are float32 ``[N, 1, 28, 28]``, normalised to [-1, 1] (mean 0.5, deviation 0.5); labels are
int64 ``[N]``. The split into training and test data is always the same.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from octavo.cli.demo.downloads import downloaded
from octavo.errors import InputError, optional_import

SIZE = 28
TEST_IMAGES = 500  # of scikit-learn's 1797
CALIBRATION_IMAGES = 1024

# The four files of MNIST: (images, labels) by part, as they are named in the wild.
_PARTS = {"train": "train", "test": "t10k"}
_FILES = ("images-idx3-ubyte", "labels-idx1-ubyte")
_IDX_BYTES = 0x08  # unsigned bytes, the only type that MNIST uses

Batches = DataLoader[tuple[Tensor, ...]]


@dataclass(frozen=True)
class Loaders:
    """Batches of (images, labels): shuffled for training, in order for calibration and test.

    ``calibration`` holds training images, so that the test images stay unseen.
    """

    train: Batches
    calibration: Batches
    test: Batches


@dataclass(frozen=True)
class Digits:
    """A data set of digits, split."""

    name: str
    train: TensorDataset
    test: TensorDataset

    def loaders(self, batch_size: int = 64, seed: int = 0) -> Loaders:
        """The batches; ``seed`` decides the order in which the training images come."""
        some = TensorDataset(*self.train[:CALIBRATION_IMAGES])
        return Loaders(
            train=_loader(self.train, batch_size, seed, shuffle=True),
            calibration=_loader(some, batch_size, seed),
            test=_loader(self.test, batch_size, seed),
        )


def load_digits(mnist: str | Path | None = None) -> Digits:
    """The digits that are at hand.

    Args:
        mnist: a folder with the four MNIST files (``train-images-idx3-ubyte`` and so on, packed as
            ``.gz`` or not; torchvision's ``MNIST/raw`` below it is found too). Where it has none of
            them, torchvision downloads them there. ``None`` takes the 1797 digits that come with
            scikit-learn.

    Raises:
        MissingExtra: scikit-learn is not installed.
        InputError: there is no such folder, it lacks a file that cannot be downloaded, or a file is
            not of MNIST's format.

    Example:
        >>> digits = load_digits()
        >>> len(digits.train), len(digits.test)
        (1297, 500)
    """
    if mnist is not None:
        folder = Path(mnist)
        if not any(folder.glob("**/*-ubyte*")):
            downloaded("MNIST", folder, _where(folder))
        parts = {name: _mnist_part(folder, prefix) for name, prefix in _PARTS.items()}
        return Digits("MNIST", **parts)
    with optional_import("scikit-learn", "demo", "load its handwritten digits"):
        from sklearn import datasets
    data = datasets.load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    images = functional.interpolate(images, size=(SIZE, SIZE), mode="bilinear")
    labels = torch.from_numpy(data.target).long()
    # RandomState's numbers are frozen for all versions of numpy.
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return Digits(
        "scikit-learn's handwritten digits, scaled to 28x28",
        train=TensorDataset(_normalised(images[train]), labels[train]),
        test=TensorDataset(_normalised(images[test]), labels[test]),
    )


def read_idx(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """An array of bytes in the idx format: magic number, sizes (big-endian), data.

    Raises:
        InputError: the file cannot be read, or is not of that format.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _IDX_BYTES:
        raise InputError(
            f"{path} is not an idx file of bytes: it starts with {content[:4].hex(' ')}"
        )
    start = 4 + 4 * content[3]
    sizes = [content[at : at + 4] for at in range(4, start, 4)]
    shape = tuple(int.from_bytes(size, "big") for size in sizes)
    if len(content) != start + math.prod(shape):
        raise InputError(
            f"{path} is cut off or damaged: it has {len(content)} bytes, and with the shape "
            f"{list(shape)} it should have {start + math.prod(shape)}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _loader(data: TensorDataset, batch_size: int, seed: int, *, shuffle: bool = False) -> Batches:
    # Even in order a DataLoader draws a random number; its own generator keeps the caller's as is.
    chance = torch.Generator().manual_seed(seed)
    return DataLoader(data, batch_size, shuffle=shuffle, generator=chance)


def _mnist_part(folder: Path, prefix: str) -> TensorDataset:
    images = read_idx(_find(folder, f"{prefix}-images", "idx3"))
    labels = read_idx(_find(folder, f"{prefix}-labels", "idx1"))
    if images.ndim != 3 or images.shape[1:] != (SIZE, SIZE) or labels.shape != images.shape[:1]:
        raise InputError(
            f"{folder} holds {prefix} images of shape {list(images.shape)} and labels of shape "
            f"{list(labels.shape)}; MNIST has [N, 28, 28] and [N]"
        )
    pixels = torch.from_numpy(images.copy()).unsqueeze(1).float() / 255
    return TensorDataset(_normalised(pixels), torch.from_numpy(labels.astype(np.int64)))


def _find(folder: Path, stem: str, kind: str) -> Path:
    """The file by any of the names it goes by, here or where torchvision unpacks it."""
    names = [f"{stem}{mark}{kind}-ubyte{gz}" for mark in "-." for gz in ("", ".gz")]
    places = [folder, folder / "raw", folder / "MNIST" / "raw"]
    for candidate in (place / name for place in places for name in names):
        if candidate.is_file():
            return candidate
    raise InputError(f"{folder} holds no {names[0]} (packed as .gz or not): {_where(folder)}")


def _where(folder: Path) -> str:
    files = [f"{prefix}-{name}" for prefix in _PARTS.values() for name in _FILES]
    return f"put MNIST's four files into {folder}: {', '.join(files)}"


def _normalised(images: Tensor) -> Tensor:
    return (images - 0.5) / 0.5
