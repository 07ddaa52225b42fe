"""`octavo.nn.Embedding`: rows of integers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import octavo
from octavo.errors import InputError, PlanError


def test_rows_by_hand() -> None:
    table = nn.Embedding.from_pretrained(torch.tensor([[1.27, -0.5], [0.0, 2.54], [0.0, 0.0]]))
    q = octavo.nn.Embedding.from_float(table, octavo.weight_only_qconfig())
    rows = q(torch.tensor([[1, 0], [2, 1]]))
    expected = torch.tensor([[[0.0, 2.54], [1.27, -0.5]], [[0.0, 0.0], [0.0, 2.54]]])
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-6)
    assert q(torch.tensor(1)).shape == (2,)
    assert q(torch.zeros(0, 3, dtype=torch.long)).shape == (0, 3, 2)


@pytest.mark.parametrize("bits", [4, 8])
def test_it_reads_what_the_captured_table_does(bits: int) -> None:
    torch.manual_seed(0)
    qconfig = octavo.weight_only_qconfig(bits, group_size=8 if bits == 4 else None)
    table, ids = nn.Embedding(50, 16), torch.randint(0, 50, (3, 4))
    graph = octavo.quantize(table, ids, qconfig=qconfig, progress=False)
    assert torch.equal(octavo.nn.from_float(table, qconfig)(ids), graph(ids))


def test_it_returns_the_dtype_that_it_had() -> None:
    table = nn.Embedding(10, 4).bfloat16()
    q = octavo.nn.from_float(table, octavo.dynamic_qconfig())
    assert q(torch.tensor([1])).dtype == torch.bfloat16
    assert q.mode == "weight_only"


def test_indices_beyond_the_table() -> None:
    q = octavo.nn.from_float(nn.Embedding(10, 4), octavo.weight_only_qconfig())
    for index in (-1, 10):
        with pytest.raises(InputError, match=f"beyond the 10 rows of the table: .* {index}"):
            q(torch.tensor([index]))
    with pytest.raises(InputError, match="int64 or int32, not"):
        q(torch.rand(3))


def test_a_table_that_changes_at_each_call_is_refused() -> None:
    with pytest.raises(PlanError, match="max_norm"):
        octavo.nn.from_float(nn.Embedding(10, 4, max_norm=1.0), octavo.weight_only_qconfig())
