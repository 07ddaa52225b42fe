from __future__ import annotations

import gzip
import shutil
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from octavo.cli.demo.digits import CALIBRATION_IMAGES, load_digits, read_idx
from octavo.errors import InputError, MissingExtra


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A small MNIST: 12 images for training, 5 for test."""
    for prefix, count in (("train", 12), ("t10k", 5)):
        images = np.arange(count * 784).reshape(count, 28, 28) % 256
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))
    return tmp_path


def test_scikit_learns_digits() -> None:
    digits = load_digits()
    images, labels = digits.train.tensors
    assert (len(digits.train), len(digits.test)) == (1297, 500)
    assert images.shape[1:] == (1, 28, 28)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert (float(images.min()), float(images.max())) == (-1.0, 1.0)
    assert sorted(set(labels.tolist())) == list(range(10))


def test_the_split_is_always_the_same_and_shares_no_image() -> None:
    first, second = load_digits(), load_digits()
    assert torch.equal(first.test.tensors[0], second.test.tensors[0])
    assert first.test.tensors[1][:10].tolist() == [2, 8, 2, 6, 6, 7, 1, 9, 8, 5]
    train = {image.numpy().tobytes() for image in first.train.tensors[0]}
    test = {image.numpy().tobytes() for image in first.test.tensors[0]}
    assert not train & test


def test_the_loaders() -> None:
    loaders = load_digits().loaders(batch_size=64, seed=3)
    again = load_digits().loaders(batch_size=64, seed=3)
    assert torch.equal(next(iter(loaders.train))[1], next(iter(again.train))[1])
    calibration = torch.cat([images for images, _ in loaders.calibration])
    assert torch.equal(calibration, load_digits().train.tensors[0][:CALIBRATION_IMAGES])
    assert sum(len(labels) for _, labels in loaders.test) == 500


@pytest.mark.parametrize("form", ["plain", "packed", "dotted", "torchvision"])
def test_mnist_by_all_its_names(mnist: Path, form: str) -> None:
    for path in list(mnist.iterdir()):
        content = path.read_bytes()
        if form == "packed":
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
            path.unlink()
        elif form == "dotted":
            path.rename(mnist / path.name.replace("-idx", ".idx"))
        elif form == "torchvision":
            (mnist / "MNIST" / "raw").mkdir(parents=True, exist_ok=True)
            path.rename(mnist / "MNIST" / "raw" / path.name)
    digits = load_digits(mnist)
    images, labels = digits.test.tensors
    assert (digits.name, len(digits.train)) == ("MNIST", 12)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert images.shape == (5, 1, 28, 28)
    assert images[0, 0, 0, 0] == -1.0
    assert float(images[0, 0, 9, 3]) == pytest.approx((255 / 255 - 0.5) / 0.5)


class Downloading:
    """In torchvision's place: it writes, or fails to reach, what it would download."""

    def __init__(self, source: Path | Exception) -> None:
        self.source = source

    def MNIST(self, root: str, download: bool) -> None:
        if isinstance(self.source, Exception):
            raise self.source
        shutil.copytree(self.source, Path(root) / "MNIST" / "raw")


def test_an_empty_folder_is_filled(
    mnist: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", Downloading(mnist))
    empty = tmp_path_factory.mktemp("empty")
    for _ in range(2):  # the second time they are there
        assert len(load_digits(empty).train) == 12


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "torchvision, which downloads them, cannot be imported"),
        (Downloading(URLError("no network")), "cannot be downloaded .*no network"),
        (Downloading(RuntimeError("Error downloading x.gz")), "Error downloading"),
    ],
)
def test_without_a_network_it_says_where_to_put_which_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: object, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", source)
    files = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte"
    with pytest.raises(InputError, match=f"{message}.*into {tmp_path}: {files}"):
        load_digits(tmp_path)


def test_a_mistyped_folder_begins_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", Downloading(tmp_path))
    with pytest.raises(InputError, match=r"there is no folder .*mnits: name the one with MNIST"):
        load_digits(tmp_path / "mnits")
    assert not (tmp_path / "mnits").exists()


def test_a_missing_file_is_named(mnist: Path) -> None:
    (mnist / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte"):
        load_digits(mnist)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "not an idx file"),
        (lambda content: b"PK\3\4" + content, "not an idx file of bytes: it starts with 50 4b"),
        (lambda content: content[:-1], "cut off or damaged"),
        (lambda content: content + b"\0", "cut off or damaged"),
        (lambda content: content[:6], "cut off or damaged"),
        (lambda content: idx(np.zeros((5, 2, 2))), r"\[5, 2, 2\]"),
        (lambda content: idx(np.zeros((4, 28, 28))), r"\[4, 28, 28\] and labels of shape \[5\]"),
    ],
)
def test_damaged_files(mnist: Path, damage: object, message: str) -> None:
    path = mnist / "t10k-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        load_digits(mnist)


def test_a_damaged_gz_file(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(np.zeros(4)))[:-6])
    with pytest.raises(InputError, match=r"cannot read .*a\.gz"):
        read_idx(tmp_path / "a.gz")


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtra, match=r'scikit-learn is needed.*pip install "octavo\[demo\]"'):
        load_digits()
