"""A safetensors file is read once, into memory of its own."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.model.files import tensor_file

TENSORS = {
    "matrix": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "int8": torch.tensor([-128, 127], dtype=torch.int8),
    "bool": torch.tensor([True, False, True]),
    "bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "complex": torch.tensor([1 + 2j]),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(7),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "a.safetensors", {"key": "value", "other": "\u00e9"})
    return tmp_path / "a.safetensors"


def test_what_was_saved_is_read(path: Path) -> None:
    metadata, tensors = tensor_file.read(path)
    assert metadata == {"key": "value", "other": "\u00e9"}
    assert set(tensors) == set(TENSORS)
    for name, expected in load_file(path).items():
        assert tensors[name].dtype == expected.dtype
        assert torch.equal(tensors[name], expected)


def test_the_metadata_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "_tensor", None)  # none is read
    assert tensor_file.read_metadata(path) == {"key": "value", "other": "\u00e9"}


def test_tensors_do_not_follow_the_file(path: Path) -> None:
    _, tensors = tensor_file.read(path)
    content = path.read_bytes()
    with path.open("r+b") as file:  # what cp does
        file.write(bytes(len(content)))
    assert torch.equal(tensors["matrix"], TENSORS["matrix"])
    os.truncate(path, 10)
    assert torch.equal(tensors["matrix"], TENSORS["matrix"])


def test_the_file_is_opened_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is replaced meanwhile is read as it was."""
    opened = Path.open

    def replaced(self: Path, *args: Any, **kwargs: Any) -> Any:
        file = opened(self, *args, **kwargs)
        other = self.with_name("other")
        save_file({"matrix": -TENSORS["matrix"]}, other)
        os.replace(other, self)
        return file

    monkeypatch.setattr(Path, "open", replaced)
    _, tensors = tensor_file.read(path)
    assert set(tensors) == set(TENSORS)
    assert torch.equal(tensors["matrix"], TENSORS["matrix"])


def file_of(path: Path, header: Any, data: bytes, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def test_bools_are_zero_or_one(tmp_path: Path) -> None:
    entry = {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]}
    _, tensors = tensor_file.read(file_of(tmp_path / "a", {"a": entry}, b"\xff\0\2"))
    assert tensors["a"].view(torch.uint8).tolist() == [1, 0, 1]


def entry(*shape: Any, begin: Any = 0, end: Any = None, dtype: str = "U8") -> dict[str, Any]:
    end = math.prod(shape) if end is None else end
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": entry(4)}, b"123"),  # cut off
        ({"a": entry(4)}, b"12345"),  # more than it says
        ({"a": entry(3), "b": entry(3, begin=2, end=5)}, b"12345"),  # one over the other
        ({"a": entry(3), "b": entry(3, begin=4, end=7)}, b"1234567"),  # a hole between them
        ({"a": entry(3, begin=1, end=4)}, b"1234"),
        ({"a": entry(2**62, 4, end=0)}, b""),  # a product that wraps to zero
        ({"a": entry(2**70, 0)}, b""),
        ({"a": entry(-1, -3, end=3)}, b"123"),
        ({"a": entry(2.0, end=2)}, b"12"),
        ({"a": entry(True, end=1)}, b"1"),
        ({"a": entry(10**15)}, b"1"),  # a petabyte
        ({"a": entry(1, dtype="F8_E8M0")}, b"1"),
        ({"a": entry(1, begin=-1, end=0)}, b"1"),
        ({"a": entry(1, begin="0", end="1")}, b"1"),
        ({"a": {"dtype": "U8"}}, b""),
        ({"a": 5}, b""),
        ([1], b""),
        ({"__metadata__": {"a": 1}}, b""),
        ({"__metadata__": "text"}, b""),
        (b"{", b""),
        (b"\xff\xff", b""),
    ],
    ids=str,
)
def test_files_that_are_not_sound(tmp_path: Path, header: Any, data: bytes) -> None:
    path = file_of(tmp_path / "a", header, data)
    with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
        tensor_file.read(path)


@pytest.mark.parametrize("length", [0, 2**63, 2**64 - 1, 1000])
def test_headers_that_are_not_there(tmp_path: Path, length: int) -> None:
    path = file_of(tmp_path / "a", {"a": entry(1)}, b"1", length)
    with pytest.raises(ValueError, match=r"its header of \d+ bytes is not there"):
        tensor_file.read(path)
