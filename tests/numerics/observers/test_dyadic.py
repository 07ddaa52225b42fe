"""The histogram on powers of two: counts by hand, and one pass in any parts and order."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from octavo.numerics.observers.dyadic import (
    DyadicHistogram,
    dyadic_grid,
    dyadic_histogram,
    merge_histograms,
)

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
# Values of one size as well, so that small and large batches meet.
values = st.one_of(finite, st.floats(-1, 1, width=32), st.sampled_from([0.0, -0.0, 1e-45, -1e-45]))


def assert_same(one: DyadicHistogram, other: DyadicHistogram) -> None:
    assert torch.equal(one.counts, other.counts)
    assert torch.equal(one.zeros, other.zeros)
    assert torch.equal(one.low, other.low)
    assert torch.equal(one.high, other.high)


def test_counts_by_hand() -> None:
    x = torch.tensor([-1.0, -0.1, 0.0, 0.4, 0.5, 2.5])
    seen = dyadic_histogram(x, None, bins=8)
    # Half wide, from -1: [-1, -.5) [-.5, 0) [0, .5) [.5, 1) [1, 1.5) [1.5, 2) [2, 2.5) [2.5, 3)
    assert seen.counts.tolist() == [[1, 1, 2, 1, 0, 0, 0, 1]]
    assert seen.zeros.tolist() == [1]
    assert seen.nonzero_counts.tolist() == [[1, 1, 1, 1, 0, 0, 0, 1]]
    assert seen.width.tolist() == [0.5]
    assert seen.edges[0].tolist() == [-2, -1, 0, 1, 2, 3, 4, 5, 6]
    assert (seen.low, seen.high) == (-1.0, 2.5)


def test_a_value_outside_doubles_the_bins() -> None:
    seen = dyadic_histogram(torch.tensor([-1.0, -0.1, 0.0, 0.4, 0.5, 2.5]), None, bins=8)
    seen = merge_histograms(seen, dyadic_histogram(torch.tensor([4.0]), None, bins=8))
    # One wide, from -1.
    assert seen.counts.tolist() == [[2, 3, 0, 1, 0, 1, 0, 0]]
    assert seen.width.tolist() == [1.0]


@given(st.lists(values, min_size=2, max_size=40), st.data(), st.sampled_from([16, 100, 2048]))
def test_any_parts_in_any_order_are_one_pass(
    numbers: list[float], data: st.DataObject, bins: int
) -> None:
    whole = dyadic_histogram(torch.tensor(numbers), None, bins)
    shuffled = data.draw(st.permutations(numbers))
    cuts = sorted({0, len(numbers), *data.draw(st.lists(st.integers(1, len(numbers) - 1)))})
    parts = [dyadic_histogram(torch.tensor(shuffled[a:b]), None, bins) for a, b in pairwise(cuts)]
    while len(parts) > 1:
        one = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        other = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        parts.append(merge_histograms(one, other))
    assert_same(parts[0], whole)
    assert whole.counts.sum() == len(numbers)


@given(
    st.lists(st.lists(values, min_size=3, max_size=3), min_size=2, max_size=12), st.integers(1, 11)
)
def test_two_halves_are_one_pass_in_each_channel(numbers: list[list[float]], cut: int) -> None:
    x = torch.tensor(numbers)
    cut = min(cut, len(x) - 1)
    one, other = (dyadic_histogram(part, 1, 64) for part in (x[:cut], x[cut:]))
    whole = dyadic_histogram(x, 1, 64)
    assert_same(merge_histograms(one, other), whole)
    assert_same(merge_histograms(other, one), whole)
    for channel in range(3):
        alone = dyadic_histogram(x[:, channel], None, 64)
        assert torch.equal(alone.counts[0], whole.counts[channel])


@given(finite, finite, st.sampled_from([16, 100, 2048]))
def test_the_grid_is_the_finest_that_fits(a: float, b: float, bins: int) -> None:
    low, high = sorted((a, b))
    exponent, first = (
        v.item() for v in dyadic_grid(torch.tensor([low]), torch.tensor([high]), bins)
    )

    def fits(e: int) -> bool:
        return math.floor(math.ldexp(high, -e)) - math.floor(math.ldexp(low, -e)) < bins

    largest = max(abs(low), abs(high))
    resolution = max(math.frexp(largest)[1] - 24, -149) if largest else -149
    assert first == math.floor(math.ldexp(low, -exponent))
    assert fits(exponent)
    assert exponent == resolution or (exponent > resolution and not fits(exponent - 1))


@pytest.mark.parametrize(
    "lay",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.cat([x, x + 9], dim=1)[:, :5],
        lambda x: x.clone().requires_grad_(),
    ],
    ids=["channels last", "transposed", "sliced", "with gradient"],
)
@pytest.mark.parametrize("axis", [None, 1, -1])
def test_the_layout_in_memory_changes_nothing(lay: object, axis: int | None) -> None:
    x = torch.randn(4, 5, 6, 7)
    seen = dyadic_histogram(lay(x), axis, 64)
    assert_same(seen, dyadic_histogram(x, axis, 64))
    assert not seen.low.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
@pytest.mark.parametrize("axis", [None, 0])
def test_other_dtypes_count_as_float32(dtype: torch.dtype, axis: int | None) -> None:
    x = (torch.randn(6, 50) * 100).to(dtype)
    assert_same(dyadic_histogram(x, axis, 64), dyadic_histogram(x.to(torch.float32), axis, 64))


@pytest.mark.parametrize("shape", [(1, 600_000), (3, 300_000), (3000, 200)])
def test_large_tensors_are_counted_in_pieces(shape: tuple[int, int]) -> None:
    x = torch.randn(shape)
    seen = dyadic_histogram(x, 0, 16)
    assert seen.counts.sum(1).tolist() == [shape[1]] * shape[0]
    for row in (0, shape[0] - 1):
        assert torch.equal(seen.counts[row], dyadic_histogram(x[row], None, 16).counts[0])


@pytest.mark.parametrize("axis", [None, 0])
def test_a_state_does_not_grow(axis: int | None) -> None:
    def nbytes(seen: DyadicHistogram) -> int:
        tensors: list[Tensor] = [seen.counts, seen.zeros, seen.low, seen.high]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    first = seen = dyadic_histogram(torch.randn(4, 50), axis, 64)
    for size in range(10):
        seen = merge_histograms(seen, dyadic_histogram(torch.randn(4, 50) * size, axis, 64))
    assert nbytes(seen) == nbytes(first)
    assert (first.batches, seen.batches) == (1, 11)
