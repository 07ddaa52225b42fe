"""Ranges that need no data."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor

from octavo.arguments import expect, of
from octavo.errors import PlanError
from octavo.numerics.observers.base import Bounds
from octavo.numerics.scheme import Scheme

_END = of(int, float, way_out="give a number")


@dataclass(frozen=True)
class FixedRange:
    """A range that is known beforehand, such as that of a softmax; what is seen does not matter.

    Args:
        low: lowest value, finite, at most 0.
        high: highest value, finite, at least 0 and above ``low``.

    Raises:
        PlanError: the range does not contain 0, or is empty or infinite.

    Example:
        >>> observer = FixedRange(0.0, 1.0)
        >>> state = observer.update(None, torch.tensor([0.2, 0.7]), None)
        >>> observer.bounds(state, Scheme("uint8")).high.item()
        1.0
    """

    low: float
    high: float
    name: ClassVar[str] = "fixed_range"

    def __post_init__(self) -> None:
        expect(_END, low=self.low, high=self.high)
        if not -inf < self.low <= 0.0 <= self.high < inf or self.low == self.high:
            raise PlanError(f"the range [{self.low}, {self.high}] must contain 0 and be finite")

    def update(self, state: Bounds | None, x: Tensor, channel_axis: int | None) -> Bounds:
        return Bounds(torch.tensor(self.low), torch.tensor(self.high))

    def merge(self, one: Bounds, other: Bounds) -> Bounds:
        return one

    def bounds(self, state: Bounds, scheme: Scheme) -> Bounds:
        return state

    def to_dict(self) -> dict[str, Any]:
        return {"observer": self.name, "low": self.low, "high": self.high}
