"""Observers: what range of values does a tensor take?

An observer is a frozen description; what it has seen is a separate value, its state. ``update``
and ``merge`` return new states and ``bounds`` reads the range off one, so that batches, shards and
ranks can be combined in any way. A state's size does not depend on how much data it has seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from octavo.errors import CalibrationError, PlanError


@dataclass(frozen=True)
class Bounds:
    """Lowest and highest value, float32 ``[]`` or ``[channels]``, and the number of batches."""

    low: Tensor
    high: Tensor
    batches: int = 1


class Observer(Protocol):
    """What an observer has to offer; ``state`` is ``None`` before the first batch."""

    name: ClassVar[str]

    def update(self, state: Any, x: Tensor, channel_axis: int | None) -> Any: ...

    def merge(self, one: Any, other: Any) -> Any: ...

    def bounds(self, state: Any) -> Bounds: ...

    def to_dict(self) -> dict[str, Any]: ...


def _extrema(x: Tensor, channel_axis: int | None) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        raise CalibrationError(f"a tensor of shape {list(x.shape)} has no values to observe")
    x = x.detach()
    if channel_axis is None:
        low, high = torch.aminmax(x)
    else:
        low, high = torch.aminmax(
            x.movedim(channel_axis, 0).reshape(x.shape[channel_axis], -1), dim=1
        )
    return low.to(torch.float32), high.to(torch.float32)


@dataclass(frozen=True)
class MinMax:
    """The lowest and the highest value ever seen.

    Example:
        >>> state = MinMax().update(None, torch.tensor([-1.0, 3.0]), None)
        >>> MinMax().bounds(state).high.item()
        3.0
    """

    name: ClassVar[str] = "min_max"

    def update(self, state: Bounds | None, x: Tensor, channel_axis: int | None) -> Bounds:
        new = Bounds(*_extrema(x, channel_axis))
        return new if state is None else self.merge(state, new)

    def merge(self, one: Bounds, other: Bounds) -> Bounds:
        return Bounds(
            torch.minimum(one.low, other.low),
            torch.maximum(one.high, other.high),
            one.batches + other.batches,
        )

    def bounds(self, state: Bounds) -> Bounds:
        return state

    def to_dict(self) -> dict[str, Any]:
        return {"observer": self.name}


@dataclass(frozen=True)
class MovingAverageMinMax:
    """Exponential moving average of every batch's lowest and highest value.

    ``low <- low + averaging_constant * (batch_low - low)``, likewise the highest, starting from
    the first batch (Jacob et al. 2018, arXiv:1712.05877, section 3.1). Merging weighs two states by
    their number of batches, since the order between shards is not known.
    """

    averaging_constant: float = 0.01
    name: ClassVar[str] = "moving_average_min_max"

    def __post_init__(self) -> None:
        if not 0.0 < self.averaging_constant <= 1.0:
            raise PlanError(
                f"averaging_constant is {self.averaging_constant}; it must be in (0, 1]"
            )

    def update(self, state: Bounds | None, x: Tensor, channel_axis: int | None) -> Bounds:
        low, high = _extrema(x, channel_axis)
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

    def bounds(self, state: Bounds) -> Bounds:
        return state

    def to_dict(self) -> dict[str, Any]:
        return {"observer": self.name, "averaging_constant": self.averaging_constant}


OBSERVERS: dict[str, type[Any]] = {o.name: o for o in (MinMax, MovingAverageMinMax)}


def observer_from_dict(data: dict[str, Any]) -> Observer:
    """The observer that ``to_dict`` described.

    Raises:
        PlanError: no such observer, or settings that it does not have.
    """
    settings = dict(data)
    name = settings.pop("observer", None)
    if name not in OBSERVERS:
        raise PlanError(f"unknown observer {name!r}; one of {sorted(OBSERVERS)}")
    try:
        observer: Observer = OBSERVERS[name](**settings)
    except TypeError as error:
        raise PlanError(f"observer {name!r} does not take {sorted(settings)}: {error}") from None
    return observer
