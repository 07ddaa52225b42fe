"""The search for a range: never worse than min-max, and close to the best there is."""

from __future__ import annotations

import pytest
import torch
from observing import DISTRIBUTIONS, SCHEMES, error_of, mean_squared_error, observed, with_outlier

from octavo.numerics.affine import qparams_of_range
from octavo.numerics.observers import MSE, Entropy, Histogram, MinMax, Observer
from octavo.numerics.observers.dyadic import dyadic_histogram
from octavo.numerics.observers.range_search import freely, shrunk, together
from octavo.numerics.scheme import Scheme

SEARCHES = [Histogram(), MSE(), Entropy()]
# What a histogram of 2048 bins does not tell: where in a bin a value lies.
TOLERANCE = 1.02


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("observer", SEARCHES, ids=lambda o: o.name)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_no_worse_than_min_max(name: str, observer: Observer, scheme: Scheme) -> None:
    x = DISTRIBUTIONS[name](20_000)
    found, min_max = error_of(observer, x, scheme), error_of(MinMax(), x, scheme)
    assert found <= min_max * TOLERANCE
    x = DISTRIBUTIONS[name](6, 400)
    found, min_max = error_of(observer, x, scheme, 0), error_of(MinMax(), x, scheme, 0)
    assert (found <= min_max * TOLERANCE).all()


@pytest.mark.parametrize("observer", SEARCHES, ids=lambda o: o.name)
def test_no_worse_in_groups_of_few_values(observer: Observer) -> None:
    groups, scheme = DISTRIBUTIONS["laplace"](500, 32), Scheme("int4", symmetric=True)
    found, min_max = (error_of(o, groups, scheme, 0) for o in (observer, MinMax()))
    assert (found <= min_max * TOLERANCE).all()


@pytest.mark.parametrize(
    ("observer", "name"),
    [
        (Histogram(), "laplace"),
        (Histogram(), "student t, 3 degrees"),
        (MSE(), "laplace"),
        (MSE(), "student t, 3 degrees"),
        (Entropy(), "one outlier"),
    ],
)
def test_heavy_tails_are_cut(observer: Observer, name: str) -> None:
    x, scheme = DISTRIBUTIONS[name](50_000), Scheme("int8", symmetric=True, narrow_range=True)
    assert error_of(observer, x, scheme) < 0.97 * error_of(MinMax(), x, scheme)


@pytest.mark.parametrize("observer", [Histogram(), MSE()], ids=lambda o: o.name)
@pytest.mark.parametrize("name", ["normal", "laplace", "lognormal", "relu", "one outlier"])
def test_the_best_symmetric_range(name: str, observer: Observer) -> None:
    x, scheme = DISTRIBUTIONS[name](20_000), Scheme("int8", symmetric=True, narrow_range=True)
    thresholds = x.abs().max() * torch.linspace(0.01, 1, 400)
    best = min(mean_squared_error(x, qparams_of_range(-t, t, scheme)) for t in thresholds)
    # An outlier leaves the rest a few steps, which the estimate of `Histogram` tells least well.
    assert error_of(observer, x, scheme) <= best * 1.04


@pytest.mark.parametrize("name", ["normal", "laplace", "lognormal", "bimodal"])
def test_the_best_affine_range(name: str) -> None:
    x, scheme = DISTRIBUTIONS[name](10_000), Scheme("uint8")
    low, high = x.min().clamp(max=0), x.max()
    best = min(
        mean_squared_error(x, qparams_of_range(low * a, high * b, scheme))
        for a in torch.linspace(0.2, 1, 30)
        for b in torch.linspace(0.2, 1, 30)
    )
    assert error_of(Histogram(), x, scheme) <= best * TOLERANCE


def test_free_ends_cut_one_sided_outliers_only() -> None:
    x, scheme = with_outlier(torch.randn(200_000), 20.0), Scheme("uint8")
    free, tied = (observed(observer, [x], scheme) for observer in (Histogram(), MSE()))
    assert free.low < -3.5
    assert free.high < 17
    assert error_of(Histogram(), x, scheme) <= error_of(MSE(), x, scheme) * TOLERANCE
    # The same factor for both.
    assert (tied.low / x.min()).item() == pytest.approx((tied.high / x.max()).item(), rel=1e-5)


@pytest.mark.parametrize("observer", SEARCHES, ids=lambda o: o.name)
def test_a_range_that_fits_the_data_stays(observer: Observer) -> None:
    x = (torch.arange(256) / 255).repeat(100)
    bounds = observed(observer, [x], Scheme("uint8"))
    assert (bounds.low, bounds.high) == (0.0, 1.0)


def test_pairs_of_factors() -> None:
    low, high = freely(torch.tensor([1.0, 0.5]))
    assert low.tolist() == [1.0, 1.0, 0.5, 0.5]
    assert high.tolist() == [1.0, 0.5, 1.0, 0.5]
    assert together(low) == (low, low)


@pytest.mark.parametrize(
    ("values", "symmetric", "low", "high"),
    [
        ([-4.0, 8.0], False, -2.0, 4.0),
        ([-4.0, 8.0], True, -4.0, 4.0),
        ([-1.0, 8.0], True, -1.0, 4.0),
        ([2.0, 8.0], False, 2.0, 4.0),
        ([6.0, 8.0], False, 6.0, 6.0),
        ([-8.0, -2.0], True, -4.0, -2.0),
    ],
)
def test_shrinking_by_half(values: list[float], symmetric: bool, low: float, high: float) -> None:
    seen = next(dyadic_histogram(torch.tensor(values), None, 64).blocks_of_rows())
    half = torch.full((1, 1), 0.5)
    found = shrunk(seen, Scheme("int8", symmetric=symmetric), half, half)
    assert tuple(end.item() for end in found) == (low, high)
