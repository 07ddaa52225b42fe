"""Octavo's own kernels and torch's operators see the same in the same values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import CalibrationError
from octavo.numerics.native import observing
from octavo.numerics.native.observing import Counted
from octavo.numerics.observers import dyadic
from octavo.numerics.observers.dyadic import (
    dyadic_histogram,
    histogram_with,
    merge_histograms,
)

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
# Subnormal values beside ordinary ones, which no float times a power of two tells from zero.
VALUES = st.one_of(FLOATS, st.floats(-1, 1, width=32), st.sampled_from([0.0, -0.0, 1e-45, -1e-45]))
ALL_SETS = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


def assert_both_ways_agree(batches, channel_axis, bins):
    own = by_torch = None
    for batch in batches:
        own = histogram_with(own, batch, channel_axis, bins)
        new = dyadic_histogram(batch, channel_axis, bins)
        by_torch = new if by_torch is None else merge_histograms(by_torch, new)
    assert own.counts.tolist() == by_torch.counts.tolist()
    assert own.zeros.tolist() == by_torch.zeros.tolist()
    assert torch.equal(own.low, by_torch.low)
    assert torch.equal(own.high, by_torch.high)
    assert own.low.shape == by_torch.low.shape
    assert own.batches == by_torch.batches == len(batches)
    assert own.counts.sum() == sum(batch.numel() for batch in batches)


@given(
    st.lists(st.lists(VALUES, min_size=1, max_size=70), min_size=1, max_size=4),
    st.sampled_from([16, 100, 2048, 65536]),
)
@ALL_SETS
def test_counts_of_a_tensor(instruction_set, batches, bins):
    assert_both_ways_agree([torch.tensor(batch) for batch in batches], None, bins)


@given(
    st.lists(
        st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=30),
        min_size=1,
        max_size=3,
    )
)
@ALL_SETS
def test_counts_of_channels(instruction_set, batches):
    assert_both_ways_agree([torch.tensor(batch) for batch in batches], 1, 64)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("channel_axis", [None, 0, 1, 3])
def test_large_tensors_in_any_order_of_memory(instruction_set, threads, channel_axis):
    torch.set_num_threads(threads)
    x = torch.randn(2, 24, 33, 40).clamp(min=-0.5)
    grown = [x, 3 * x.contiguous(memory_format=torch.channels_last), x[:, :, ::2], x.relu()]
    if channel_axis == 3:
        grown[2] = x[:, :, ::2, :]
    assert_both_ways_agree(grown, channel_axis, 2048)
    assert_both_ways_agree([x[:1].expand(3, -1, -1, -1)], channel_axis, 2048)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int32])
def test_other_types(instruction_set, dtype):
    assert_both_ways_agree([(100 * torch.randn(5, 7)).to(dtype)], None, 128)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 40000])
@pytest.mark.parametrize("odd", [math.nan, -math.nan, math.inf, -math.inf])
def test_what_is_not_finite_shows_and_changes_nothing(instruction_set, count, odd):
    x = torch.randn(count)
    x[count // 2] = odd
    low, high = observing.extrema(x.reshape(1, -1))
    expected = torch.stack(torch.aminmax(x))
    assert torch.equal(torch.cat([low, high]).nan_to_num(7.0), expected.nan_to_num(7.0))
    seen = Counted.nothing(1, 16)
    assert seen.take_in(torch.tensor([[1.0, 2.0]]))
    before = [t.clone() for t in (seen.counts, seen.zeros, seen.low, seen.high)]
    assert not seen.take_in(x.reshape(1, -1))
    after = [seen.counts, seen.zeros, seen.low, seen.high]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    with pytest.raises(CalibrationError, match=rf"shape \[{count}\] has values that are not"):
        histogram_with(None, x, None, 16)


def test_extrema_of_each_row(instruction_set):
    x = torch.randn(300, 257)
    low, high = observing.extrema(x)
    assert torch.equal(low, x.amin(1))
    assert torch.equal(high, x.amax(1))


def test_a_state_is_a_value():
    first = histogram_with(None, torch.tensor([1.0, 2.0]), None, 16)
    counts = first.counts.clone()
    second = histogram_with(first, torch.tensor([-100.0, 0.0]), None, 16)
    assert torch.equal(first.counts, counts)
    assert (first.low, first.high, first.batches) == (1.0, 2.0, 1)
    assert (second.low, second.high, second.batches) == (-100.0, 2.0, 2)


def test_without_a_library_torch_counts(monkeypatch):
    x = torch.randn(3, 50)
    own = histogram_with(None, x, 0, 64)
    monkeypatch.setattr(dyadic, "reads", lambda x: False)
    by_torch = histogram_with(None, x, 0, 64)
    assert torch.equal(own.counts, by_torch.counts)


def test_shapes_and_types_are_checked(instruction_set):
    seen = Counted.nothing(2, 16)
    for x in (torch.zeros(3, 4), torch.zeros(2, 0), torch.zeros(2, 4, dtype=torch.float64)):
        with pytest.raises(ValueError, match="for 2 rows"):
            seen.take_in(x)
    with pytest.raises(ValueError, match="of other types"):
        Counted(seen.counts.int(), seen.zeros, seen.low, seen.high).take_in(torch.zeros(2, 4))


@pytest.mark.parametrize("odd", [math.nan, -math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_found(instruction_set, odd):
    for count in (1, 7, 100, 70000):
        x = torch.linspace(-1e38, 1e38, count)
        assert observing.are_finite(x)
        x[count // 2] = odd
        assert not observing.are_finite(x)
    assert observing.are_finite(torch.empty(0))
