"""What holds for every observer: dicts, settings, errors, ranges inside the data."""

from __future__ import annotations

import math

import pytest
import torch
from observing import SCHEMES, observed

from octavo.errors import CalibrationError, PlanError
from octavo.numerics.observers import (
    MSE,
    OBSERVERS,
    Entropy,
    FixedRange,
    Histogram,
    MinMax,
    MovingAverageMinMax,
    Observer,
    PairSum,
    Percentile,
    observer_from_dict,
)
from octavo.numerics.scheme import Scheme

FIXED = FixedRange(-1.0, 2.0)
EVERY = [
    MinMax(),
    MovingAverageMinMax(0.25),
    Percentile(99.9),
    Histogram(),
    MSE(bins=512),
    Entropy(),
]
ON_HISTOGRAMS = EVERY[2:]


def named(item: Observer | Scheme) -> str:
    return getattr(item, "name", str(item))


def test_the_list_of_observers() -> None:
    others = [FIXED, PairSum()]  # ranges that do not lie inside what was seen
    assert {type(observer) for observer in [*EVERY, *others]} == set(OBSERVERS.values())


@pytest.mark.parametrize("observer", [*EVERY, FIXED], ids=named)
def test_round_trips_as_a_dict(observer: Observer) -> None:
    assert observer_from_dict(observer.to_dict()) == observer
    assert OBSERVERS[observer.name] is type(observer)


def test_what_a_dict_holds() -> None:
    assert Percentile(99.9).to_dict() == {
        "observer": "percentile",
        "percentile": 99.9,
        "bins": 2048,
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"observer": "histogrm"}, r"unknown observer 'histogrm'; one of \['entropy'"),
        ({}, "unknown observer None"),
        ({"observer": "min_max", "averaging_constant": 0.1}, "does not take"),
        ({"observer": "mse", "percentile": 99.0}, "does not take"),
        ({"observer": "moving_average_min_max", "averaging_constant": 0.0}, "is 0.0; it must be"),
        ({"observer": "moving_average_min_max", "averaging_constant": 1.5}, "is 1.5; it must be"),
        ({"observer": "moving_average_min_max", "averaging_constant": "a"}, "is 'a'; it must be"),
        ({"observer": "percentile", "percentile": 50}, r"is 50; it must be in \(50, 100\]"),
        ({"observer": "percentile", "percentile": math.nan}, "is nan; it must be"),
        ({"observer": "percentile", "percentile": True}, "is True; it must be"),
        ({"observer": "histogram", "bins": 8}, "bins is 8; it must be an integer in"),
        ({"observer": "histogram", "bins": 2.0**17}, "bins is 131072.0; it must be"),
        ({"observer": "entropy", "bins": 1024.0}, "bins is 1024.0; it must be"),
        ({"observer": "percentile", "bins": None}, "bins is None; it must be"),
    ],
)
def test_unknown_observers_and_settings_are_errors(data: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        observer_from_dict(data)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("observer", EVERY, ids=named)
@pytest.mark.parametrize("axis", [None, 1])
def test_bounds_lie_inside_the_data(observer: Observer, scheme: Scheme, axis: int | None) -> None:
    shifts = torch.tensor([0.0, -3.0, 3.0, -100.0, 100.0]).reshape(1, 5, 1)
    x = torch.randn(40, 5, 7).pow(3) + shifts
    bounds = observed(observer, [x], scheme, axis)
    others = [0, 2] if axis == 1 else [0, 1, 2]
    for values in (bounds.low, bounds.high):
        assert values.shape == (() if axis is None else (5,))
        assert values.dtype == torch.float32
    assert (x.amin(others) <= bounds.low).all()
    assert (bounds.low <= bounds.high).all()
    assert (bounds.high <= x.amax(others)).all()


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(10),
        torch.full((10,), 3.7),
        torch.full((10,), -3.7),
        torch.tensor(2.0),
        torch.tensor([-1e30, 1e30, 1.0, 0.0]),
        torch.tensor([-1e-45, 1e-45, 0.0, 3e-44]),
        torch.tensor([-1e-45, 1e38]),
        torch.tensor([1.0, 1.0 + 2**-23]),
        torch.tensor([16777215.0, 16777216.0, 16777218.0]),
    ],
    ids=["0", "3.7", "-3.7", "scalar", "huge", "denormal", "wide", "close", "past 24 bits"],
)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("observer", ON_HISTOGRAMS, ids=named)
def test_odd_values(observer: Observer, scheme: Scheme, x: torch.Tensor) -> None:
    bounds = observed(observer, [x, x], scheme)
    assert x.min() <= bounds.low <= bounds.high <= x.max()
    assert bounds.batches == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("axis", [None, 0])
def test_values_that_are_not_finite_are_an_error(bad: float, axis: int | None) -> None:
    with pytest.raises(CalibrationError, match=r"shape \[2, 2\] has values that are not finite"):
        Histogram().update(None, torch.tensor([[1.0, 2.0], [bad, 0.0]]), axis)


@pytest.mark.parametrize("observer", EVERY, ids=named)
def test_a_tensor_without_values_is_an_error(observer: Observer) -> None:
    with pytest.raises(CalibrationError, match=r"shape \[0, 3\] has no values"):
        observer.update(None, torch.empty(0, 3), None)


@pytest.mark.parametrize("observer", ON_HISTOGRAMS, ids=named)
def test_per_channel_is_per_tensor_on_each_channel(observer: Observer) -> None:
    x = torch.randn(40, 50) * torch.logspace(-3, 3, 40).unsqueeze(1)
    scheme = Scheme("int8", symmetric=True)
    whole = observed(observer, [x], scheme, 0)
    for channel in (0, 17, 39):
        one = observed(observer, [x[channel]], scheme)
        assert (one.low, one.high) == (whole.low[channel], whole.high[channel])
