"""The range of least squared error, each end on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from octavo.numerics.observers.dyadic import DyadicHistogram, HistogramObserver
from octavo.numerics.observers.quantization_error import Moments, estimated_error, grid_of_ranges
from octavo.numerics.observers.range_search import freely, search, together
from octavo.numerics.scheme import Scheme


@dataclass(frozen=True)
class Histogram(HistogramObserver):
    """The range that quantizes the histogram with the least squared (L2) error.

    The two ends move independently, so that an outlier on one side does not cost the other; of a
    symmetric scheme there is one threshold. What a range costs is estimated in closed form, which
    lets a thousand pairs be tried in each channel. The goal is that of ``NormMinimization`` in
    Caffe2 (and PyTorch's ``HistogramObserver``), which moves one end at a time until the error
    grows; this search does not stop there.

    Args:
        bins: number of bins, see `HistogramObserver`.

    Example:
        >>> import torch
        >>> x = torch.cat([torch.linspace(-1, 1, 10**6), torch.tensor([4.0])])
        >>> observer = Histogram()
        >>> bounds = observer.bounds(observer.update(None, x, None), Scheme("uint8"))
        >>> bounds.low.item(), bounds.high.item() < 1.5
        (-1.0, True)
    """

    name: ClassVar[str] = "histogram"

    def range_of(self, seen: DyadicHistogram, scheme: Scheme) -> tuple[Tensor, Tensor]:
        moments = Moments.of(seen)

        def loss(low: Tensor, high: Tensor) -> Tensor:
            return estimated_error(moments, grid_of_ranges(seen, low, high, scheme))

        return search(seen, scheme, together if scheme.symmetric else freely, loss)
