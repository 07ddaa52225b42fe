"""Statistics of rounds: how one contender's times stand to another's, and how sure that is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median and quartiles.

    Example:
        >>> str(Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]))
        '3.00 [2.00, 4.00]'
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value or more; quartiles by linear interpolation.

        Raises:
            ValueError: there are no values.
        """
        if not values:
            raise ValueError("there are no values")
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high)

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Spread:
    """Our time over theirs, round by round: each holds a list of times for each round.

    What slows the machine for a while slows both in the same round, and so cancels out.

    Raises:
        ValueError: the numbers of rounds differ, or there are none.
    """
    pairs = zip(ours, theirs, strict=True)
    return Spread.of([statistics.median(our) / statistics.median(their) for our, their in pairs])
