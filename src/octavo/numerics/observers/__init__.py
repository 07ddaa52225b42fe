"""Observers: what range of values does a tensor take, and which part of it is worth keeping?

An observer is a frozen description; what it has seen is a separate value, its state. ``update``
and ``merge`` return new states and ``bounds`` reads the range off one, so that batches, shards and
ranks can be combined in any way. A state's size does not depend on how much data it has seen.
"""

from __future__ import annotations

from typing import Any

from octavo.errors import PlanError
from octavo.numerics.observers.base import Bounds, Observer
from octavo.numerics.observers.entropy import Entropy
from octavo.numerics.observers.fixed_range import FixedRange
from octavo.numerics.observers.histogram import Histogram
from octavo.numerics.observers.min_max import MinMax, MovingAverageMinMax
from octavo.numerics.observers.mse import MSE
from octavo.numerics.observers.pair_sum import PairSum
from octavo.numerics.observers.percentile import Percentile

__all__ = [
    "MSE",
    "OBSERVERS",
    "Bounds",
    "Entropy",
    "FixedRange",
    "Histogram",
    "MinMax",
    "MovingAverageMinMax",
    "Observer",
    "PairSum",
    "Percentile",
    "observer_from_dict",
]

OBSERVERS: dict[str, type[Any]] = {
    o.name: o
    for o in (
        MinMax,
        MovingAverageMinMax,
        FixedRange,
        PairSum,
        Percentile,
        Histogram,
        MSE,
        Entropy,
    )
}


def observer_from_dict(data: dict[str, Any]) -> Observer:
    """The observer that ``to_dict`` described.

    Args:
        data: its name, ``"observer"``, and its settings.

    Raises:
        PlanError: no such observer, or settings that it does not have.

    Example:
        >>> observer_from_dict({"observer": "percentile", "percentile": 99.9})
        Percentile(bins=2048, percentile=99.9)
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
