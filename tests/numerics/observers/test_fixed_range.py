"""A fixed range stays, whatever is seen."""

from __future__ import annotations

import math

import pytest
import torch
from observing import observed

from octavo.errors import PlanError
from octavo.numerics.observers import FixedRange
from octavo.numerics.scheme import Scheme


def test_what_is_seen_does_not_matter() -> None:
    bounds = observed(FixedRange(-1.0, 2.0), [torch.randn(5) * 100, torch.zeros(3)], Scheme())
    assert (bounds.low, bounds.high) == (-1.0, 2.0)


@pytest.mark.parametrize(
    ("low", "high"),
    [(1.0, 2.0), (-2.0, -1.0), (0.0, 0.0), (0.0, math.inf), (-math.inf, 0.0), (math.nan, 1.0)],
)
def test_ranges_that_cannot_be(low: float, high: float) -> None:
    with pytest.raises(PlanError, match="must contain 0 and be finite"):
        FixedRange(low, high)
