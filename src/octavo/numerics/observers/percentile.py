"""The range without the outermost values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from octavo.numerics.observers.base import check_setting
from octavo.numerics.observers.dyadic import DyadicHistogram, HistogramObserver
from octavo.numerics.observers.quantization_error import cumulated
from octavo.numerics.scheme import Scheme


@dataclass(frozen=True)
class Percentile(HistogramObserver):
    """From the ``100 - percentile``-th to the ``percentile``-th percentile.

    Each tail loses ``100 - percentile`` percent of the values (Wu et al. 2020, arXiv:2004.09602,
    section 3.3). Percentiles are read off the histogram by linear interpolation, so that they are
    right up to one bin. Nothing is searched for: the error may be larger than that of min-max.

    Args:
        percentile: where the upper tail begins, in (50, 100]; 100 cuts nothing.
        bins: number of bins, see `HistogramObserver`.

    Raises:
        PlanError: ``percentile`` is out of range, or ``bins``.

    Example:
        >>> observer = Percentile(99.0)
        >>> state = observer.update(None, torch.linspace(0, 100, 10001), None)
        >>> bounds = observer.bounds(state, Scheme("uint8"))
        >>> round(bounds.low.item()), round(bounds.high.item())
        (1, 99)
    """

    percentile: float = 99.99
    name: ClassVar[str] = "percentile"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting("percentile", self.percentile, lambda p: 50.0 < p <= 100.0, "in (50, 100]")

    def range_of(self, seen: DyadicHistogram, scheme: Scheme) -> tuple[Tensor, Tensor]:
        low = _quantile(seen, (100.0 - self.percentile) / 100.0)
        high = _quantile(seen, self.percentile / 100.0)
        return torch.clamp(low, seen.low, seen.high), torch.clamp(high, seen.low, seen.high)


def _quantile(seen: DyadicHistogram, share: float) -> Tensor:
    """The value with this share of all values below it, float32 ``[rows]``."""
    below = cumulated(seen.counts.to(torch.float64))
    rank = share * below[:, -1:]
    bin_ = torch.searchsorted(below[:, 1:].contiguous(), rank).clamp(max=seen.bins - 1)
    inside = (rank - below.gather(1, bin_)) / seen.counts.gather(1, bin_).clamp(min=1)
    position = seen.edges.gather(1, bin_) + inside
    return (position.squeeze(1) * seen.width).to(torch.float32)
