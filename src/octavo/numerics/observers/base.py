"""What every observer offers, and the extrema that all of them start from.

Tested in tests/numerics/observers/test_observers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from octavo.errors import CalibrationError, PlanError
from octavo.numerics.native import observing
from octavo.numerics.native.observing import reads
from octavo.numerics.scheme import Scheme


@dataclass(frozen=True)
class Bounds:
    """Lowest and highest value, float32 ``[]`` or ``[channels]``, and the number of batches.

    Attributes:
        low: the lowest value.
        high: the highest value.
        batches: how many they are of.
    """

    low: Tensor
    high: Tensor
    batches: int = 1


class Observer(Protocol):
    """What an observer has to offer; ``state`` is ``None`` before the first batch."""

    name: ClassVar[str]

    def update(self, state: Any, x: Tensor, channel_axis: int | None) -> Any:
        """The state after one more batch ``x``, of any shape.

        Raises:
            CalibrationError: ``x`` has no values.
        """
        ...

    def merge(self, one: Any, other: Any) -> Any:
        """The state of an observer that has seen what both have seen."""
        ...

    def bounds(self, state: Any, scheme: Scheme) -> Bounds:
        """The range to quantize with ``scheme``; it lies inside what was seen."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Name and settings, for `observer_from_dict`."""
        ...


def extrema(x: Tensor, channel_axis: int | None) -> tuple[Tensor, Tensor]:
    """Lowest and highest value, float32, of the tensor (``[]``) or of each channel
    (``[channels]``); NaN where there is one.

    Raises:
        CalibrationError: the tensor is empty.
    """
    check_not_empty(x)
    rows = rows_of(x.detach(), channel_axis)
    if reads(x):
        low, high = observing.extrema(rows.to(torch.float32))
    else:
        low, high = (end.to(torch.float32) for end in torch.aminmax(rows, dim=1))
    return (low[0], high[0]) if channel_axis is None else (low, high)


def rows_of(x: Tensor, channel_axis: int | None) -> Tensor:
    """The values as ``[1, values]`` or ``[channels, values]``, without a copy where possible."""
    if channel_axis is not None:
        return x.movedim(channel_axis, 0).reshape(x.shape[channel_axis], -1)
    # Their order does not matter: that of memory lets channels-last tensors be read as they lie.
    return x.permute(sorted(range(x.dim()), key=x.stride, reverse=True)).reshape(1, -1)


def check_not_empty(x: Tensor) -> None:
    """Refuse a tensor without values.

    Raises:
        CalibrationError: it has none.
    """
    if x.numel() == 0:
        raise CalibrationError(f"a tensor of shape {list(x.shape)} has no values to observe")


def check_setting(name: str, value: object, fits: Callable[[Any], bool], wanted: str) -> None:
    """Refuse a setting that is not a number, or one that does not fit.

    Args:
        name: the setting's name.
        value: what was given.
        fits: whether a number is in range.
        wanted: what it must be, for the message.

    Raises:
        PlanError: it names the setting, the value and what is wanted.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not fits(value):
        raise PlanError(f"{name} is {value!r}; it must be {wanted}")
