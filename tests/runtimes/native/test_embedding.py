from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.numerics import octavo_operators
from octavo.numerics.native import library
from octavo.runtimes.native.embedding import Table, pick_rows, sum_bags


def table_of(rows, groups, size, bits, signed, symmetric, seed=0):
    """A table, and its floats."""
    chance = torch.Generator().manual_seed(seed)
    columns, half = 2 * size * groups, 2 ** (bits - 1)
    low, high = (-half, half) if signed else (0, 2 * half)
    q = torch.randint(low, high, (rows, columns), generator=chance)
    q = q.to(torch.int8 if signed else torch.uint8)
    scales = torch.rand(rows, groups, generator=chance) + 0.1
    zeros = torch.randint(low, high, (rows, groups), generator=chance, dtype=torch.int32)
    zeros = zeros * (not symmetric)
    floats = octavo_operators.dequantize(q, scales, zeros)
    values = octavo_operators.pack_int4(q).reshape(rows, -1) if bits == 4 else q
    return Table(values, scales, None if symmetric else zeros, bits, signed), floats


tables = st.builds(
    table_of,
    rows=st.integers(1, 20),
    groups=st.integers(1, 3),
    size=st.integers(1, 40),
    bits=st.sampled_from([4, 8]),
    signed=st.booleans(),
    symmetric=st.booleans(),
    seed=st.integers(0, 99),
)
many = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@many
@given(known=tables, shape=st.lists(st.integers(0, 5), max_size=3), small=st.booleans())
def test_rows_are_the_oracles_to_the_bit(instruction_set, known, shape, small):
    table, floats = known
    ids = torch.randint(0, len(floats), shape, dtype=torch.int32 if small else torch.int64)
    rows = pick_rows(ids, *table.arguments)
    assert rows.shape == (*shape, floats.shape[1])
    assert torch.equal(rows, floats[ids.long()])


@many
@given(
    known=tables,
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    mode=st.sampled_from(["sum", "mean", "max"]),
    ends=st.booleans(),
    weighted=st.booleans(),
    padded=st.booleans(),
)
def test_bags_are_torchs(instruction_set, known, lengths, mode, ends, weighted, padded):
    table, floats = known
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    ids = torch.randint(0, len(floats), (int(offsets[-1]),))
    offsets = offsets if ends else offsets[:-1]
    factors = torch.randn(len(ids)) if weighted and mode == "sum" else None
    padding = int(ids[0]) if padded and len(ids) else None
    wanted = F.embedding_bag(
        ids,
        floats,
        offsets,
        mode=mode,
        per_sample_weights=factors,
        include_last_offset=ends,
        padding_idx=padding,
    )
    number = ("sum", "mean", "max").index(mode)
    got = sum_bags(ids, offsets, factors, number, ends, padding, *table.arguments)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_many_rows_on_threads(instruction_set, threads):
    table, floats = table_of(50, 4, 64, 4, True, False)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ids = torch.randint(0, 50, (3, 200))
        assert torch.equal(pick_rows(ids, *table.arguments), floats[ids])
    finally:
        torch.set_num_threads(before)


def test_what_is_not_in_the_table_is_refused():
    if library.library() is None:
        pytest.skip("the kernels are not compiled here")
    table, _ = table_of(5, 1, 4, 8, True, True)
    for ids in ([5], [-1], [2, 7]):
        with pytest.raises(IndexError, match="is out of range: it is beyond a table of 5 rows"):
            pick_rows(torch.tensor(ids), *table.arguments)
    with pytest.raises(ValueError, match=r"torch\.float32 on cpu where indices"):
        pick_rows(torch.tensor([1.0]), *table.arguments)
    for offsets in ([0, 3], [0, 2, 1], [-1], [1], [1, 0]):
        with pytest.raises(IndexError, match="offsets that do not begin at 0, are not in order"):
            sum_bags(
                torch.tensor([1, 2]),
                torch.tensor(offsets),
                None,
                0,
                False,
                None,
                *table.arguments,
            )
    ids = torch.tensor([1, 2])
    with pytest.raises(ValueError, match="factors are for sums"):
        sum_bags(ids, ids[:1] * 0, torch.ones(2), 1, False, None, *table.arguments)
    with pytest.raises(ValueError, match=r"scales \[\(5, 3\)\]"):
        pick_rows(torch.tensor([1]), table.values, torch.ones(5, 3), None, 8, True)


def test_torch_knows_what_they_make():
    if library.library() is None:
        pytest.skip("the kernels are not compiled here")
    table, _ = table_of(5, 2, 4, 4, True, False)
    ids, offsets = torch.tensor([1, 2, 3]), torch.tensor([0, 2])
    operators, checks = torch.ops.octavo, ("test_schema", "test_faketensor")
    with torch.inference_mode():
        torch.library.opcheck(
            operators.pick_rows.default, (ids, *table.arguments), test_utils=checks
        )
        given = (ids, offsets, None, 1, False, 2, *table.arguments)
        torch.library.opcheck(operators.sum_bags.default, given, test_utils=checks)
