from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from octavo.cli.sources.data_source import load_data
from octavo.cli.sources.table import read_table
from octavo.errors import InputError
from octavo.graph.batches import Signature, split_batch


def written(folder: Path, text: str) -> Path:
    path = folder / "data.csv"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "a,y,b\n1,0,2.5\n-3,2,4e1\n",
        "a;y;b\r\n1;0;2.5\r\n-3;2;40\r\n",
        '\ufeff"a"\t"y"\t"b"\n"1"\t"0"\t"2.5"\n-3\t2\t40',
    ],
)
def test_columns_become_one_array_and_labels(tmp_path: Path, text: str) -> None:
    arrays = read_table(written(tmp_path, text), {"y"})
    assert arrays["table"].tolist() == [[1.0, 2.5], [-3.0, 40.0]]
    assert arrays["table"].dtype == np.float32
    assert arrays["y"].tolist() == [0, 2]
    assert arrays["y"].dtype == np.int64


def test_labels_may_be_fractions(tmp_path: Path) -> None:
    assert read_table(written(tmp_path, "a,y\n1,0.5\n"), {"y"})["y"].tolist() == [0.5]


def test_one_row_and_one_column(tmp_path: Path) -> None:
    assert read_table(written(tmp_path, "a\n1\n"), {"y"})["table"].tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3,4\n", "line 1 has to name the columns"),
        ("\n", "line 1 has to name the columns"),
        ("a,b\n1,2\n3,red\n", "line 3, column 'b', holds 'red', no number"),
        ("a,b\n1,\n", "line 2, column 'b', holds '', no number"),
        ("a,b\n1,2\n\n3,4,5\n", "line 4 has 3 columns, and line 1 names 2"),
        ("a,b\n1,2,3\n", "line 2 has 3 columns, and line 1 names 2"),
        ("a,b\n", "no rows"),
    ],
)
def test_a_wrong_cell_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=message):
        load_data(str(path), Signature(("x",), 1))


def test_a_table_is_data_of_a_command(tmp_path: Path) -> None:
    signature = Signature(("x",), 1)
    path = written(tmp_path, "a,b,c,labels\n" + "1,2,3,1\n" * 5)
    batches = [split_batch(b, signature) for b in load_data(str(path), signature, batch_size=4)]
    assert [tuple(batch.args[0].shape) for batch in batches] == [(4, 3), (1, 3)]
    assert torch.equal(batches[1].labels, torch.tensor([1]))


def test_a_table_is_one_argument(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b\n1,2\n")
    with pytest.raises(InputError, match=r"holds the arrays \['table'\].*name the arrays"):
        load_data(str(path), Signature(("x", "mask"), 2))
