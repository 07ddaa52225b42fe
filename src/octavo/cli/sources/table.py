"""A table of numbers in a text file, as data: a row a sample."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_SEPARATORS = (",", ";", "\t")


def read_table(path: Path, labels: Collection[str]) -> dict[str, NDArray[np.float32 | np.int64]]:
    r"""The arrays of a ``.csv`` file whose first line names the columns.

    Args:
        path: the file, in UTF-8; columns are separated by commas, semicolons or tabs.
        labels: names of columns that hold labels.

    Returns:
        ``"table"``, float32 ``[rows, columns]``, of all columns but labels, in the file's order;
        and the columns of labels by name, ``[rows]``: int64 where all are whole, else float32.

    Raises:
        ValueError: it names no columns, or a cell is no number; the message has its line and
            column.

    Example:
        >>> path = Path("flowers.csv")
        >>> _ = path.write_text("width,height,y\n1.5,2,0\n0.5,1,1\n")
        >>> read_table(path, {"y"})["y"]
        array([0, 1])
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        separator = max(_SEPARATORS, key=first.count)
        names = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
        if not any(names) or all(map(_is_number, names)):
            raise ValueError("line 1 has to name the columns, and holds numbers or nothing")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there are no rows
                values = np.loadtxt(
                    file, delimiter=separator, ndmin=2, comments=None, quotechar='"'
                )
        except ValueError as error:
            raise ValueError(_wrong_cell(path, separator, names) or str(error)) from None
    if values.shape[1] != len(names):
        raise ValueError(_wrong_cell(path, separator, names) or "it holds no rows")
    columns = {name: values[:, index] for index, name in enumerate(names) if name in labels}
    inputs = [index for index, name in enumerate(names) if name not in labels]
    table = {"table": values[:, inputs].astype(np.float32)} if inputs else {}
    return table | {name: _whole(column) for name, column in columns.items()}


def _whole(column: NDArray[np.float64]) -> NDArray[np.float32 | np.int64]:
    is_whole = bool(np.all(np.isfinite(column) & (column == np.floor(column))))
    return column.astype(np.int64 if is_whole else np.float32)


def _wrong_cell(path: Path, separator: str, names: list[str]) -> str:
    """The first cell that is no number, or line of another length; empty where there is none."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        next(reader)
        for row in filter(None, reader):
            if len(row) != len(names):
                return (
                    f"line {reader.line_num} has {len(row)} columns, and line 1 names {len(names)}"
                )
            for name, cell in zip(names, row, strict=True):
                if not _is_number(cell):
                    return f"line {reader.line_num}, column {name!r}, holds {cell!r}, no number"
    return ""


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
