from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.cli.sources.data_source import load_data
from octavo.cli.sources.image_folder import ImageOptions
from octavo.errors import InputError, MissingExtra
from octavo.graph.batches import Batch, Signature, split_batch

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

X = Signature(("x",), 1)
TEXT = Signature(("input_ids", "attention_mask", "labels"), 1)


def parquet_of(folder: Path, **columns: Any) -> str:
    path = folder / "data.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def saved(folder: Path, **columns: Any) -> str:
    """As ``datasets.Dataset.save_to_disk`` writes it, in two files of rows."""
    folder.mkdir()
    table = pyarrow.table(columns)
    half = len(table) // 2
    names = [f"data-0000{index}-of-00002.arrow" for index in range(2)]
    for name, part in zip(names, (table[:half], table[half:]), strict=True):
        with pyarrow.ipc.new_stream(folder / name, table.schema) as stream:
            stream.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "cache-1234.arrow").write_bytes(b"of datasets.map")
    return str(folder)


def batches(source: str, signature: Signature, **options: Any) -> list[Batch]:
    return [split_batch(b, signature) for b in load_data(source, signature, **options)]


def png(level: int) -> dict[str, Any]:
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image.new("RGB", (6, 4), (level, 0, 255)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": "a.png"}


def test_single_numbers_are_a_table_beside_labels(tmp_path: Path) -> None:
    source = parquet_of(tmp_path, a=[1, 2, 3], y=[0, 1, 1], b=[0.5, 1.5, 2.5])
    first, last = batches(source, X, batch_size=2)
    assert first.args[0].tolist() == [[1.0, 0.5], [2.0, 1.5]]
    assert first.args[0].dtype == torch.float32
    assert last.labels.tolist() == [1]


def test_a_saved_data_set_gives_what_the_model_takes(tmp_path: Path) -> None:
    rows = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    ids = pyarrow.array(rows, pyarrow.list_(pyarrow.int32()))
    texts = ["left", "out", "here"]
    source = saved(tmp_path / "reviews", text=texts, input_ids=ids, idx=[0, 1, 2], label=[1, 0, 1])
    (batch,) = batches(source, TEXT)
    assert batch.args[0].dtype == torch.int64
    assert torch.equal(batch.args[0], torch.tensor(rows))
    assert batch.labels.tolist() == [1, 0, 1]


def test_nested_lists_keep_their_shape(tmp_path: Path) -> None:
    rows = torch.arange(24.0).reshape(2, 3, 4)
    (batch,) = batches(parquet_of(tmp_path, signal=rows.tolist()), X)
    assert torch.equal(batch.args[0], rows)


def test_images_are_decoded_batch_by_batch(tmp_path: Path) -> None:
    source = saved(tmp_path / "pets", image=[png(0), png(51), png(255)], label=[2, 0, 1])
    options = ImageOptions(size=2, raw=True)
    data = load_data(source, X, batch_size=2, images=options)
    assert len(data) == 2  # type: ignore[arg-type]
    (first, labels), (last, _) = data
    assert first.shape == (2, 3, 2, 2)
    assert first[1, :, 0, 0].tolist() == [51, 0, 255]
    assert last[0, 0].tolist() == [[255, 255], [255, 255]]
    assert labels.tolist() == [2, 0]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "texts": ({"text": ["a", "b"], "label": [0, 1]}, "column 'text' holds string, no numbers"),
    "ragged": ({"input_ids": [[1], [2, 3]]}, 'have 1 to 2 values.*padding="max_length"'),
    "empty cells": ({"x": [1.0, None]}, "column 'x' has 1 empty cells"),
    "two arrays": ({"p": [[1], [2]], "q": [[1], [2]]}, r"holds the arrays \['p', 'q'\]"),
    "no rows": ({"x": pyarrow.array([], pyarrow.float32())}, "are empty"),
    "an image that is elsewhere": (
        {"image": [{"bytes": None, "path": "a.png"}]},
        "row 0 of column 'image' holds no image, but 'a.png'",
    ),
    "no image": (
        {"image": [{"bytes": b"no", "path": "a.png"}]},
        "row 0 of column 'image' as an image: it is not one of PNG",
    ),
}


@pytest.mark.parametrize(("columns", "message"), WRONG.values(), ids=WRONG)
def test_a_column_that_is_no_input_is_named(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    source = parquet_of(tmp_path, **columns)
    signature = TEXT if "input_ids" in columns else X
    with pytest.raises(InputError, match=message):
        list(load_data(source, signature))


def test_several_splits_and_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InputError, match=r"splits \['train', 'test'\]: give one, .*/train"):
        load_data(str(tmp_path), X)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"cannot read .*cut\.parquet"):
        load_data(str(tmp_path / "cut.parquet"), X)
    with pytest.raises(InputError, match="there is no such file"):
        load_data(str(tmp_path / "cut2.parquet"), X)


def test_without_pyarrow_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r'pip install "octavo\[tables\]"'):
        load_data(str(tmp_path / "data.parquet"), X)
