"""Columns of Apache Arrow as data: a ``.parquet`` file, or a data set of Hugging Face's on disk."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.cli.sources.image_folder import ImageOptions, read_image
from octavo.errors import InputError, optional_import
from octavo.model.files.source_file import check_file, reason

PARQUET = ".parquet"
# What datasets.Dataset.save_to_disk writes beside the rows, and DatasetDict.save_to_disk above it.
_STATE, _SPLITS = "state.json", "dataset_dict.json"


@dataclass(frozen=True)
class ImageCells:
    """The images of a column, as files of PNG, JPEG ... in its cells.

    Attributes:
        name: of the column.
        cells: the column.
    """

    name: str
    cells: Any

    def __len__(self) -> int:
        return len(self.cells)

    def read(self, part: slice, options: ImageOptions) -> Tensor:
        """Some of them, uint8 ``[N, channels, size, size]``.

        Raises:
            InputError: a cell holds no image.
        """
        cells = self.cells[part].to_pylist()
        rows = range(len(self))[part]
        return torch.stack([self._image(*one, options) for one in zip(rows, cells, strict=True)])

    def _image(self, row: int, cell: Any, options: ImageOptions) -> Tensor:
        place = Path(f"row {row} of column {self.name!r}")
        if not cell or cell["bytes"] is None:
            raise InputError(
                f"{place} holds no image, but {cell and cell['path']!r}: save the data set again "
                "where the images are, which puts them into it"
            )
        return read_image(place, options, cell["bytes"])


@dataclass(frozen=True)
class StoredImages:
    """The images of a column in batches, decoded anew each time that it is iterated.

    Attributes:
        images: the column.
        labels: int64 ``[rows]``, or ``None``.
        options: how images become numbers.
        batch_size: images in a batch; the last one may have fewer.

    Yields what `ImageFolder` yields.
    """

    images: ImageCells
    labels: Tensor | None
    options: ImageOptions
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for start in range(0, len(self.images), self.batch_size):
            part = slice(start, start + self.batch_size)
            pixels = self.images.read(part, self.options)
            batch = pixels if self.options.raw else self.options.pixels.normalized(pixels)
            yield (batch,) if self.labels is None else (batch, self.labels[part])


def holds_columns(path: Path) -> bool:
    """Whether it is a ``.parquet`` file, or a folder that ``save_to_disk`` wrote."""
    saved = any((path / name).is_file() for name in (_STATE, _SPLITS))
    return saved or path.suffix == PARQUET


def read_columns(
    path: Path, arguments: Collection[str], labels: Collection[str]
) -> dict[str, NDArray[Any] | ImageCells]:
    """The arrays of a ``.parquet`` file or a saved data set.

    Args:
        path: the file or the folder.
        arguments: of the model. Where columns are named so, they and labels are all that is read.
        labels: names of columns that hold labels.

    Returns:
        By name of column: lists of equal length as ``[rows, length, ...]``, labels as ``[rows]``,
        images as `ImageCells`; and all columns of single numbers that are no argument's as one
        ``"table"``, float32 ``[rows, columns]``, as `read_table` has them.

    Raises:
        InputError: it cannot be read, or a column holds something else.
        MissingExtra: pyarrow is not installed.
    """
    with optional_import("pyarrow", "tables", f"read {path}"):
        import pyarrow  # noqa: F401
    try:
        table = _table(path)
        named = [name for name in table.column_names if name in arguments]
        inputs = named or [name for name in table.column_names if name not in labels]
        chosen = [name for name in table.column_names if name in (*inputs, *labels)]
        columns = {name: _column(name, table.column(name)) for name in chosen}
    except InputError:
        raise
    except Exception as error:  # Arrow's own, and those of damaged JSON, share no base
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    single = [name for name in inputs if not named and _is_single(columns[name])]
    if single:
        rows = np.stack([columns.pop(name) for name in single], 1)
        return {"table": rows.astype(np.float32), **columns}
    return columns


def _table(path: Path) -> Any:
    from pyarrow import concat_tables, ipc, parquet

    if path.suffix == PARQUET and not path.is_dir():
        check_file(path)
        return parquet.read_table(path)
    if (path / _SPLITS).is_file():
        splits = json.loads((path / _SPLITS).read_text(encoding="utf-8"))["splits"]
        raise InputError(f"{path} holds the splits {splits}: give one, {path / str(splits[0])}")
    state = json.loads((path / _STATE).read_text(encoding="utf-8"))
    # Beside the rows lie what datasets.map keeps, which the state does not name.
    files = [path / Path(part["filename"]).name for part in state["_data_files"]]
    for file in files:
        check_file(file)
    return concat_tables([ipc.open_stream(file.read_bytes()).read_all() for file in files])


def _column(name: str, column: Any) -> Any:
    """A column as an array, or its images."""
    from pyarrow import ExtensionArray, compute, concat_arrays, types

    if types.is_struct(column.type) and {"bytes", "path"} <= {field.name for field in column.type}:
        return ImageCells(name, column)
    values = concat_arrays(column.chunks) if column.num_chunks else column.combine_chunks()
    shape = [len(values)]
    while True:
        if isinstance(values, ExtensionArray):
            values = values.storage
        if values.null_count:
            raise InputError(f"column {name!r} has {values.null_count} empty cells: fill them")
        if not _is_list(values.type):
            break
        lengths = compute.min_max(compute.list_value_length(values)).as_py()
        if lengths["min"] != lengths["max"]:
            raise InputError(
                f"the lists in column {name!r} have {lengths['min']} to {lengths['max']} values: "
                'give them one length, tokenizer(text, padding="max_length", truncation=True)'
            )
        shape.append(lengths["max"] or 0)
        values = values.flatten()
    kind = values.type
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        raise InputError(
            f"column {name!r} holds {kind}, no numbers: leave it out, or make numbers of it (of "
            "text tokens, dataset.map(tokenizer)) under the name of one of the model's arguments"
        )
    array = values.to_numpy(zero_copy_only=False).reshape(shape)
    # Whole numbers as datasets gives them to torch, whichever the file has; but for pixels. And a
    # copy, since torch warns of memory that may not be written, as Arrow's is.
    is_small = types.is_integer(kind) and array.dtype != np.uint8
    return np.array(array, dtype=np.int64 if is_small else None)


def _is_single(column: Any) -> bool:
    """One number a row."""
    return isinstance(column, np.ndarray) and column.ndim == 1


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))
