"""Ranges that cover all that was seen, or what batches reach on average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from octavo.numerics.observers.base import Bounds, check_setting, extrema
from octavo.numerics.scheme import Scheme


@dataclass(frozen=True)
class MinMax:
    """The lowest and the highest value ever seen.

    Example:
        >>> state = MinMax().update(None, torch.tensor([-1.0, 3.0]), None)
        >>> MinMax().bounds(state, Scheme("uint8")).high.item()
        3.0
    """

    name: ClassVar[str] = "min_max"

    def update(self, state: Bounds | None, x: Tensor, channel_axis: int | None) -> Bounds:
        new = Bounds(*extrema(x, channel_axis))
        return new if state is None else self.merge(state, new)

    def merge(self, one: Bounds, other: Bounds) -> Bounds:
        return Bounds(
            torch.minimum(one.low, other.low),
            torch.maximum(one.high, other.high),
            one.batches + other.batches,
        )

    def bounds(self, state: Bounds, scheme: Scheme) -> Bounds:
        return state

    def to_dict(self) -> dict[str, Any]:
        return {"observer": self.name}


@dataclass(frozen=True)
class MovingAverageMinMax:
    """Exponential moving average of every batch's lowest and highest value.

    ``low <- low + averaging_constant * (batch_low - low)``, likewise the highest, starting from
    the first batch (Jacob et al. 2018, arXiv:1712.05877, section 3.1). Merging weighs two states by
    their number of batches, since the order between shards is not known.

    Attributes:
        averaging_constant: the weight of a new batch, above 0 and up to 1.

    Raises:
        PlanError: it is out of that range.

    Example:
        >>> observer = MovingAverageMinMax(averaging_constant=0.5)
        >>> state = observer.update(None, torch.tensor([0.0, 8.0]), None)
        >>> state = observer.update(state, torch.tensor([0.0, 4.0]), None)
        >>> observer.bounds(state, Scheme("uint8")).high.item()
        6.0
    """

    averaging_constant: float = 0.01
    name: ClassVar[str] = "moving_average_min_max"

    def __post_init__(self) -> None:
        check_setting(
            "averaging_constant", self.averaging_constant, lambda c: 0.0 < c <= 1.0, "in (0, 1]"
        )

    def update(self, state: Bounds | None, x: Tensor, channel_axis: int | None) -> Bounds:
        low, high = extrema(x, channel_axis)
        if state is None:
            return Bounds(low, high)
        step = self.averaging_constant
        return Bounds(
            state.low + step * (low - state.low),
            state.high + step * (high - state.high),
            state.batches + 1,
        )

    def merge(self, one: Bounds, other: Bounds) -> Bounds:
        batches = one.batches + other.batches
        share = other.batches / batches
        return Bounds(
            torch.lerp(one.low, other.low, share), torch.lerp(one.high, other.high, share), batches
        )

    def bounds(self, state: Bounds, scheme: Scheme) -> Bounds:
        return state

    def to_dict(self) -> dict[str, Any]:
        return {"observer": self.name, "averaging_constant": self.averaging_constant}
