"""What chance does to counts of right answers: an interval for one count, a test for two.

Two models that answer the same samples differ by the few on which one is right and the other wrong;
whether they lean to one side by more than chance, McNemar's test says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

LEVEL = 0.05  # what chance brings about less often than this is taken for real
QUANTILE = 1.959963984540054  # of the normal distribution at 1 - LEVEL / 2


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share, Wilson's score interval: it holds for small counts too.

    Args:
        right: how often.
        total: of how many, one or more.

    Example:
        >>> tuple(round(end, 4) for end in wilson(98, 100))
        (0.93, 0.9945)
    """
    share, spread = right / total, QUANTILE**2 / total
    centre = share + spread / 2
    half = math.sqrt(spread * share * (1 - share) + spread**2 / 4)
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))


def mcnemar(lost: int, won: int) -> float:
    """How often chance alone divides the samples in dispute as unevenly: the exact test, two-sided.

    Args:
        lost: samples that only the first answers rightly.
        won: samples that only the second does.

    Example:
        >>> round(mcnemar(10, 2), 4)
        0.0386
    """
    disputed = lost + won
    # Through logarithms: the binomial coefficients of a large set are too large for floats.
    whole = math.lgamma(disputed + 1) - disputed * math.log(2)
    tail = (
        math.exp(whole - math.lgamma(few + 1) - math.lgamma(disputed - few + 1))
        for few in range(min(lost, won) + 1)
    )
    return min(1.0, 2 * math.fsum(tail))


@dataclass
class PairedCounts:
    """How two models answer the same samples, counted batch by batch.

    Attributes:
        total: samples.
        right: those that the second answers rightly.
        lost, won: those that only the first, and only the second, answers rightly.
        complete: whether the answers of all batches could be counted.
    """

    total: int = 0
    right: int = 0
    lost: int = 0
    won: int = 0
    complete: bool = True

    def update(self, first: Tensor | None, second: Tensor | None) -> None:
        """Add a batch: for each sample whether it is right, bool ``[N]``; ``None`` if not known."""
        if first is None or second is None:
            self.complete = False
            return
        self.total += second.numel()
        self.right += int(second.sum())
        self.lost += int((first & ~second).sum())
        self.won += int((second & ~first).sum())

    @property
    def known(self) -> bool:
        """Whether there is anything to tell."""
        return self.complete and self.total > 0
