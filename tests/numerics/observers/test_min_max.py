"""Min-max and moving average: numbers that an article prints, and what holds of any data."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from observing import ARTICLE, observed
from torch import Tensor

from octavo.errors import CalibrationError
from octavo.numerics.affine import qparams_of_range
from octavo.numerics.observers import Bounds, MinMax, MovingAverageMinMax
from octavo.numerics.scheme import Scheme


@pytest.mark.parametrize(
    ("observer", "scheme", "scale", "zero_point"),
    [
        (MinMax(), Scheme("uint8"), 0.0112, 124),
        (MovingAverageMinMax(), Scheme("uint8"), 0.0101, 139),
        (MovingAverageMinMax(), Scheme("uint8", symmetric=True), 0.0109, 128),
        (
            MovingAverageMinMax(),
            Scheme("uint8", channel_axis=0),
            [0.0090, 0.0075, 0.0055],
            [125, 187, 82],
        ),
    ],
    ids=["min-max", "moving average", "moving average, symmetric", "moving average, per channel"],
)
def test_the_numbers_of_the_article(
    observer: MinMax | MovingAverageMinMax,
    scheme: Scheme,
    scale: float | list[float],
    zero_point: int | list[int],
) -> None:
    bounds = observed(observer, ARTICLE, scheme, scheme.channel_axis)
    p = qparams_of_range(bounds.low, bounds.high, scheme)
    # Printed with four digits, so that half of the last is what they can be off.
    assert p.scale.tolist() == pytest.approx(scale, abs=0.5e-4)
    assert p.zero_point.tolist() == zero_point


batches_of_floats = st.lists(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=6, max_size=6).map(
        lambda values: torch.tensor(values).reshape(2, 3)
    ),
    min_size=2,
    max_size=8,
)


@given(batches_of_floats, st.sampled_from([None, 0, 1, -1]), st.integers(1, 7))
def test_min_max_merged_from_two_halves_is_one_pass(
    data: list[Tensor], axis: int | None, cut: int
) -> None:
    cut = min(cut, len(data) - 1)
    observer = MinMax()

    def state_of(part: list[Tensor]) -> Bounds:
        state = None
        for batch in part:
            state = observer.update(state, batch, axis)
        return state

    whole, one, other = state_of(data), state_of(data[:cut]), state_of(data[cut:])
    for merged in (observer.merge(one, other), observer.merge(other, one)):
        assert torch.equal(merged.low, whole.low)
        assert torch.equal(merged.high, whole.high)
        assert merged.batches == whole.batches == len(data)
    joined = torch.stack(data)
    if axis is None:
        assert (whole.low, whole.high) == (joined.min(), joined.max())
    else:
        others = [0, 2 if axis == 0 else 1]
        assert torch.equal(whole.low, joined.amin(others))
        assert torch.equal(whole.high, joined.amax(others))


def test_a_moving_average_by_hand() -> None:
    observer = MovingAverageMinMax(0.5)
    state = None
    for low, high in [(0.0, 8.0), (-4.0, 4.0), (-4.0, 0.0)]:
        state = observer.update(state, torch.tensor([low, high]), None)
    # low: 0, -2, -3; high: 8, 6, 3
    assert (state.low, state.high, state.batches) == (-3.0, 3.0, 3)


def test_merging_moving_averages_weighs_by_batches() -> None:
    observer = MovingAverageMinMax()
    one = Bounds(torch.tensor(0.0), torch.tensor(1.0), 1)
    other = Bounds(torch.tensor(-4.0), torch.tensor(9.0), 3)
    for merged in (observer.merge(one, other), observer.merge(other, one)):
        assert (merged.low, merged.high, merged.batches) == (-3.0, 7.0, 4)


@pytest.mark.parametrize("observer", [MinMax(), MovingAverageMinMax()], ids=lambda o: o.name)
@pytest.mark.parametrize(("axis", "size"), [(None, 1), (0, 4), (1, 5)])
def test_a_state_does_not_grow(
    observer: MinMax | MovingAverageMinMax, axis: int | None, size: int
) -> None:
    state = observer.update(None, torch.randn(4, 5, 6), axis)
    for _ in range(30):
        previous, state = state, observer.update(state, torch.randn(4, 5, 6), axis)
    for value in (state.low, state.high):
        assert value.numel() == size
        # A view would hold on to the batch it was taken from.
        assert value.untyped_storage().nbytes() == size * 4
        assert value.dtype == torch.float32
    assert state.batches == 31
    assert previous.batches == 30


@pytest.mark.parametrize("observer", [MinMax(), MovingAverageMinMax()], ids=lambda o: o.name)
def test_batches_leave_no_gradients_behind(observer: MinMax | MovingAverageMinMax) -> None:
    x = torch.randn(3, requires_grad=True)
    state = observer.update(observer.update(None, x * 2, None), x * 3, None)
    assert not state.low.requires_grad
    assert not state.high.requires_grad


@pytest.mark.parametrize("observer", [MinMax(), MovingAverageMinMax()], ids=lambda o: o.name)
def test_a_nan_is_not_lost(observer: MinMax | MovingAverageMinMax) -> None:
    state = observer.update(None, torch.tensor([1.0, math.nan]), None)
    state = observer.update(state, torch.tensor([1.0, 2.0]), None)
    with pytest.raises(CalibrationError, match="not finite"):
        qparams_of_range(state.low, state.high, Scheme())


def test_a_vector_per_channel_and_other_dtypes() -> None:
    state = MinMax().update(None, torch.tensor([3, -2], dtype=torch.float16), 0)
    assert state.low.tolist() == state.high.tolist() == [3.0, -2.0]
    assert state.low.dtype == torch.float32


def test_a_tensor_without_values_is_an_error() -> None:
    with pytest.raises(CalibrationError, match=r"shape \[0, 3\] has no values"):
        MinMax().update(None, torch.empty(0, 3), None)
