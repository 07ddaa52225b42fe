"""Percentiles: off a line by hand, and against the sorted values up to one bin."""

from __future__ import annotations

import pytest
import torch
from observing import DISTRIBUTIONS, observed

from octavo.numerics.observers import Percentile
from octavo.numerics.scheme import Scheme


def test_by_hand() -> None:
    # Bins are 8 wide and hold 8 integers each, so that a quarter of the values fills 32 bins.
    bounds = observed(Percentile(75.0, bins=128), [torch.arange(1024.0)], Scheme())
    assert (bounds.low, bounds.high) == (256.0, 768.0)


def test_a_hundred_percent_is_min_max() -> None:
    x = torch.randn(1000)
    bounds = observed(Percentile(100.0), [x], Scheme())
    assert (bounds.low, bounds.high) == (x.min(), x.max())


@pytest.mark.parametrize("name", ["normal", "laplace", "lognormal", "relu", "bimodal"])
@pytest.mark.parametrize("percentile", [99.9, 99, 80])
def test_right_up_to_one_bin(name: str, percentile: float) -> None:
    x, observer = DISTRIBUTIONS[name](50_000), Percentile(percentile)
    width = observer.update(None, x, None).width.item()
    bounds = observed(observer, list(x.split(10_000)), Scheme())
    ordered = x.sort().values
    cut = round(len(x) * (100 - percentile) / 100)
    # Between the values before and after the cut, and they are far apart where data is thin.
    assert ordered[cut - 1] - width <= bounds.low <= ordered[cut] + width
    assert ordered[-cut - 1] - width <= bounds.high <= ordered[-cut] + width


def test_one_outlier_is_cut() -> None:
    x = torch.cat([torch.linspace(-1, 1, 100_000), torch.tensor([50.0])])
    bounds = observed(Percentile(), [x], Scheme())
    assert bounds.high < 1.1
    assert bounds.low < -0.95


def test_each_channel_has_its_own() -> None:
    x = torch.arange(1024.0) * torch.tensor([[1.0], [-2.0]])
    bounds = observed(Percentile(75.0), [x], Scheme(), 0)
    assert bounds.low.tolist() == pytest.approx([256, -1536], abs=2)
    assert bounds.high.tolist() == pytest.approx([768, -512], abs=2)
