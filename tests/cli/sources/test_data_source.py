from __future__ import annotations

import io
import os
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from octavo.cli.sources.data_source import load_data
from octavo.errors import InputError
from octavo.graph.batches import Signature, split_batch

ONE = Signature(("x",), 1)
TWO = Signature(("x", "mask", "scale"), 2)
X, MASK, Y = np.random.rand(10, 3).astype("float32"), np.ones((10, 1), "float32"), np.arange(10)


@pytest.mark.parametrize("label", ["labels", "y", "target"])
@pytest.mark.parametrize("name", ["x", "images"])
def test_npz(tmp_path: Path, name: str, label: str) -> None:
    path = str(tmp_path / "data.npz")
    np.savez(path, **{label: Y, name: X})
    data = load_data(path, ONE, batch_size=4)
    batches = [split_batch(batch, ONE) for batch in data]
    assert len(data) == len(batches) == 3
    assert [len(batch.labels) for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([batch.args[0] for batch in batches]), torch.from_numpy(X))
    assert torch.cat([batch.labels for batch in batches]).tolist() == Y.tolist()
    assert len(list(data)) == 3  # a second time


def test_safetensors(tmp_path: Path) -> None:
    path = str(tmp_path / "data.safetensors")
    save_file({"pictures": torch.from_numpy(X), "y": torch.from_numpy(Y)}, path)
    (batch,) = (split_batch(batch, ONE) for batch in load_data(path, ONE))
    assert batch.args[0].shape == (10, 3)
    assert batch.labels.tolist() == Y.tolist()


def test_several_inputs_by_name_in_any_order(tmp_path: Path) -> None:
    path = str(tmp_path / "data.safetensors")
    save_file({"mask": torch.from_numpy(MASK), "x": torch.from_numpy(X)}, path)
    (batch,) = (split_batch(batch, TWO) for batch in load_data(path, TWO))
    assert [tuple(arg.shape) for arg in batch.args] == [(10, 3), (10, 1)]


def test_an_optional_argument_comes_by_name(tmp_path: Path) -> None:
    path = str(tmp_path / "data.npz")
    np.savez(path, scale=MASK, x=X, mask=MASK)
    (batch,) = (split_batch(batch, TWO) for batch in load_data(path, TWO))
    assert list(batch.kwargs) == ["x", "mask", "scale"]


def test_several_inputs_in_the_files_order(tmp_path: Path) -> None:
    path = str(tmp_path / "data.npz")
    np.savez(path, X, MASK, labels=Y)
    (batch,) = (split_batch(batch, TWO) for batch in load_data(path, TWO))
    assert [tuple(arg.shape) for arg in batch.args] == [(10, 3), (10, 1)]
    assert batch.labels.tolist() == Y.tolist()


def test_float64_becomes_float32_and_other_types_stay(tmp_path: Path) -> None:
    path = str(tmp_path / "data.npz")
    np.savez(path, x=X.astype("float64"), mask=Y)
    ((x, mask),) = load_data(path, TWO)
    assert (x.dtype, mask.dtype) == (torch.float32, torch.int64)


def test_a_function_or_an_iterable_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_batches.py").write_text(
        "import torch\ndef function():\n    yield torch.ones(1)\nitems = [torch.zeros(2)]\n"
        "def number():\n    return 7\ntensor = torch.zeros(2)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_batches", raising=False)
    assert [len(batch) for batch in load_data("my_batches:function", ONE)] == [1]
    assert [len(batch) for batch in load_data("my_batches:items", ONE)] == [2]
    for name, kind in (("number", "int"), ("tensor", "Tensor")):
        with pytest.raises(InputError, match=f"gives a {kind}, not an iterable of batches"):
            load_data(f"my_batches:{name}", ONE)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "holds no arrays"),
        ({"x": X[:0]}, "are empty"),
        ({"x": X, "labels": Y[:4]}, "different numbers of samples"),
        ({"a": X, "b": MASK, "c": MASK}, r"arrays \['a', 'b', 'c'\].*takes \['x', 'mask', 'scale'"),
        ({"x": X, "labels": Y, "y": Y}, r"\['labels', 'y'\]: which of them"),
        ({"x": np.array(["a", None] * 5, dtype=object)}, "cannot read .*as .npz.*pickle"),
        ({"x": np.array(["a"] * 10)}, "cannot read .*as .npz"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict, message: str) -> None:
    path = str(tmp_path / "data.npz")
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message):
        load_data(path, TWO)


def test_two_inputs_of_safetensors_have_no_order(tmp_path: Path) -> None:
    path = str(tmp_path / "data.safetensors")
    save_file({"a": torch.from_numpy(MASK), "b": torch.from_numpy(X)}, path)
    with pytest.raises(InputError, match="name the arrays like that"):
        load_data(path, TWO)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"PK\3\4 nothing of use", b"x" * 100])
def test_files_that_cannot_be_read(tmp_path: Path, suffix: str, content: bytes | None) -> None:
    path = tmp_path / f"data{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"cannot read .*data.* as {suffix}: ."):
        load_data(str(path), ONE)


def test_batch_size(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X)
    with pytest.raises(InputError, match="batch size 0"):
        load_data(str(tmp_path / "data.npz"), ONE, batch_size=0)


def damaged() -> dict[str, bytes]:
    """Archives of one array; numpy and zipfile have no common error for what is wrong with them."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.random.default_rng(0).normal(size=(64, 50)).astype("f4"))
    good = buffer.getvalue()
    found = {f"zeros at {at}": good[:at] + bytes(20) + good[at + 20 :] for at in (0, 40, 100, 5000)}
    central = good.index(b"PK\1\2")
    for name, flag, method in (("encrypted", 1, 8), ("patched", 0x20, 8), ("method", 0, 99)):
        raw = bytearray(good)
        raw[6] = raw[central + 8] = flag
        raw[8] = raw[central + 10] = method
        found[name] = bytes(raw)
    for shape in ("(1000000000000,)", "(2**70,)", "(-1,)", "((),)"):
        text = (
            f"{{'descr':'<f4','fortran_order':False,'shape':{shape}}}".encode().ljust(117) + b"\n"
        )
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            magic = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text))
            archive.writestr("x.npy", magic + text)
        found[f"shape {shape}"] = buffer.getvalue()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.txt", "text")
    found["text"] = buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, X)
    found["one array"] = buffer.getvalue()
    return found


@pytest.mark.parametrize("content", damaged().values(), ids=damaged())
def test_damaged_archives(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read .*data\.npz as \.npz: .") as caught:
        load_data(str(path), ONE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("header", [b"[]", b"null", b"{", b'{"x":5}', b"[" * 99_999, b"\xff"])
def test_damaged_headers(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "data.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(InputError, match=r"cannot read .* as \.safetensors: ."):
        load_data(str(path), ONE)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_what_is_no_file_of_data(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    with pytest.raises(InputError, match="it is a pipe or a device"):
        load_data(str(tmp_path / f"pipe{suffix}"), ONE)
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        load_data(str(tmp_path / f"folder{suffix}"), ONE)
    (tmp_path / "data.orc").write_text("1,2")
    with pytest.raises(InputError, match=r"data\.orc is of another kind than \.npz and"):
        load_data(str(tmp_path / "data.orc"), ONE)


def test_npy_is_one_array(tmp_path: Path) -> None:
    path = str(tmp_path / "data.npy")
    np.save(path, X)
    (batch,) = (split_batch(batch, ONE) for batch in load_data(path, ONE))
    assert torch.equal(batch.args[0], torch.from_numpy(X))
    np.save(path, np.array([None], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"cannot read .*as \.npy.*pickle"):
        load_data(path, ONE)
