"""Norms, softmax and attention as operations of programs: the oracle's results."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.numerics import octavo_operators
from octavo.runtimes.integers import Integers
from octavo.runtimes.native.program import Line, Program
from octavo.runtimes.native.rows import AddUp, Attend, Gather, Normalize

pytestmark = pytest.mark.usefixtures("instruction_set")

SOURCE, OUT = (Integers(0.02, 120, 0, 255, torch.uint8), Integers(0.03, 90, 0, 255, torch.uint8))
MEANT = (
    Integers(0.02, 127, 0, 255, torch.uint8),
    Integers(0.03, 140, 0, 255, torch.uint8),
    Integers(0.01, 97, 0, 255, torch.uint8),
)


def normalized(
    kind: str, x: Tensor, axes: int, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    sizes = x.shape[-axes:]
    if kind == "softmax":
        return x.softmax(-1)
    if kind == "rms_norm":
        return F.rms_norm(x, sizes, weight, 1e-5)
    return F.layer_norm(x, sizes, weight, bias, 1e-5)


@given(
    st.sampled_from(["layer_norm", "rms_norm", "softmax"]),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(1, 70),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60)
def test_norms_are_torchs(kind, outer, columns, is_integers, rounds, swaps):
    x = torch.randn(*outer, columns)
    if swaps and len(outer) > 1:
        x = x.transpose(0, 1)
    q = octavo_operators.quantize(x, SOURCE.scale, SOURCE.zero_point, 0, 255, torch.uint8)
    given = q if is_integers else x
    if is_integers:
        x = octavo_operators.dequantize(q, SOURCE.scale, SOURCE.zero_point)
    has = kind != "softmax"
    weight = torch.randn(columns) if has else None
    bias = torch.randn(columns) if kind == "layer_norm" else None
    operation = Normalize(
        kind, 1, 1e-5, weight, bias, SOURCE if is_integers else None, OUT if rounds else None
    )
    have, want = Program.of(operation, 1)(given), normalized(kind, x, 1, weight, bias)
    assert have.shape == want.shape
    if rounds:
        wanted = octavo_operators.quantize(want, OUT.scale, OUT.zero_point, 0, 255, torch.uint8)
        assert int((have.int() - wanted.int()).abs().max()) <= 1
    else:
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)


def test_a_norm_is_over_several_axes():
    x, weight = torch.randn(3, 4, 5), torch.randn(4, 5)
    have = Program.of(Normalize("layer_norm", 2, 1e-5, weight), 1)(x)
    torch.testing.assert_close(have, F.layer_norm(x, (4, 5), weight, None, 1e-5))


def test_a_weight_of_another_length_is_refused():
    with pytest.raises(RuntimeError, match="rows of 5 values"):
        Program.of(Normalize("layer_norm", 1, 1e-5, torch.ones(4)), 1)(torch.randn(2, 5))


def random_bytes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def attended(operation: Attend, tensors: list[Tensor], mask: Tensor | None) -> Tensor:
    floats = [
        octavo_operators.dequantize(t, meant.scale, meant.zero_point)
        for t, meant in zip(tensors, operation.sources, strict=True)
    ]
    how = (operation.causal, operation.scale, operation.shares_heads, operation.levels)
    return octavo_operators.attention(*floats, mask, *how)


MASKS = {
    "none": lambda sizes: None,
    "seen": lambda sizes: torch.rand(sizes) < 0.7,
    "added": lambda sizes: torch.randn(sizes),
    "of one head": lambda sizes: torch.randn(sizes[0], 1, *sizes[2:]),
    "of all rows": lambda sizes: torch.rand(sizes[0], 1, 1, sizes[3]) < 0.7,
    "a column": lambda sizes: torch.randn(sizes[2], 1),
}


@given(
    st.integers(1, 3),
    st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    st.integers(1, 30),
    st.integers(1, 30),
    st.sampled_from([1, 3, 16, 20, 64]),
    st.sampled_from(sorted(MASKS)),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60)
def test_attention_is_the_oracles(batch, heads, targets, sources, channels, mask, causal, rounds):
    count, shared = heads
    tensors = [
        random_bytes(batch, length, number, channels).transpose(1, 2)
        for length, number in ((targets, count), (sources, shared), (sources, shared))
    ]
    given = MASKS[mask]((batch, count, targets, sources))
    out = Integers(0.0117, 101, 0, 255, torch.uint8) if rounds else None
    operation = Attend(causal, None, count != shared, 255, MEANT, out)
    read = [*tensors, *([] if given is None else [given])]
    have, want = Program.of(operation, len(read))(*read), attended(operation, tensors, given)
    assert have.shape == want.shape
    if out is None:
        # A share of the probabilities may be rounded to the other side.
        torch.testing.assert_close(have, want, rtol=0, atol=0.01 * 255 / 127)
    else:
        wanted = octavo_operators.quantize(want, out.scale, out.zero_point, 0, 255, torch.uint8)
        assert int((have.int() - wanted.int()).abs().max()) <= 2


def test_attention_broadcasts_batches_and_has_no_heads_of_its_own():
    q, k, v = random_bytes(2, 1, 3, 5, 8), random_bytes(4, 3, 6, 8), random_bytes(1, 3, 6, 8)
    operation = Attend(False, 0.3, False, 255, MEANT, None)
    have = Program.of(operation, 3)(q, k, v)
    torch.testing.assert_close(have, attended(operation, [q, k, v], None), rtol=0, atol=0.02)
    flat = [t.reshape(-1, *t.shape[-2:])[0] for t in (q, k, v)]
    have = Program.of(operation, 3)(*flat)
    torch.testing.assert_close(have, attended(operation, flat, None), rtol=0, atol=0.02)


def test_attention_to_nothing_is_zero():
    q, none = random_bytes(1, 2, 3, 8), random_bytes(1, 2, 0, 8)
    operation = Attend(False, None, False, 255, MEANT, None)
    assert torch.equal(Program.of(operation, 3)(q, none, none), torch.zeros(1, 2, 3, 8))


@pytest.mark.parametrize(
    "sizes", [((4, 5, 8), (3, 6, 8), (3, 6, 8)), ((2, 5, 8), (2, 6, 7), (2, 6, 8))]
)
def test_sizes_that_do_not_fit_are_refused(sizes):
    operation = Attend(False, None, sizes[0][0] != sizes[1][0], 255, MEANT, None)
    with pytest.raises(RuntimeError, match="attention of"):
        Program.of(operation, 3)(*(random_bytes(1, *size) for size in sizes))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_it(threads):
    torch.manual_seed(0)
    tensors = [random_bytes(2, 50, 4, 32).transpose(1, 2) for _ in "qkv"]
    attend, norm = (Attend(False, None, False, 255, MEANT, None), Normalize("softmax"))
    lines = (Line("a", attend, ("q", "k", "v")), Line("y", norm, ("a",)))
    whole = Program(lines, ("q", "k", "v"), ("y",))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = whole(*tensors)
        torch.set_num_threads(threads)
        assert all(torch.equal(whole(*tensors), want) for _ in range(20))
    finally:
        torch.set_num_threads(before)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
@settings(max_examples=40)
def test_sums_and_means_are_torchs(sizes, data):
    x = torch.randn([*sizes[:-1], data.draw(st.sampled_from([1, 7, 64, 150]))])
    first = data.draw(st.integers(0, x.dim() - 1))
    dims = tuple(range(first, data.draw(st.integers(first, x.dim() - 1)) + 1))
    keeps = data.draw(st.booleans())
    for is_mean, wanted in ((False, x.sum(dims, keeps)), (True, x.mean(dims, keeps))):
        have = Program.of(AddUp(dims, keeps, is_mean), 1)(x)
        torch.testing.assert_close(have, wanted, rtol=1e-5, atol=1e-5)


def test_many_values_are_added_without_loss():
    x = torch.full((1, 100_000, 3), 0.1)
    have = Program.of(AddUp((1,), False, False), 1)(x)
    torch.testing.assert_close(have, x.sum(1), rtol=1e-5, atol=0)


def test_rows_of_a_table_are_gathered_as_floats():
    table = torch.randint(-128, 128, (9, 21), dtype=torch.int8)
    scales, zero_points = torch.rand(9), torch.randint(-5, 5, (9,), dtype=torch.int32)
    gather = Program.of(Gather(table, scales, zero_points), 1)
    for rows in (torch.randint(0, 9, (3, 4)), torch.tensor(5), torch.empty(0, dtype=torch.int64)):
        want = (table[rows] - zero_points[rows][..., None]) * scales[rows][..., None]
        assert torch.equal(gather(rows), want)
    for row in (-1, 9, 2**40):
        with pytest.raises(IndexError, match=f"row {row} of a table of 9"):
            gather(torch.tensor([0, row, 3]))
