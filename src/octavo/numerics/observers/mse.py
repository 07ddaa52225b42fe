"""The range of least mean-square error, both ends shrunk alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from octavo.numerics.observers.dyadic import DyadicHistogram, HistogramObserver
from octavo.numerics.observers.quantization_error import integrated_error
from octavo.numerics.observers.range_search import search, together
from octavo.numerics.scheme import Scheme


@dataclass(frozen=True)
class MSE(HistogramObserver):
    """The shrunk min-max range with the least mean-square error.

    One factor shrinks both ends (the search of Nagel et al. 2021, arXiv:2106.08295, section 3.1,
    eq. 22, and of GPTQ's ``--mse``). Every factor is scored by integrating the error over all bins,
    so that it matters where the multiples of the scale fall. Next to `Histogram`, which has two
    free ends and an estimate: this is the choice for weights, with few values in each channel,
    and for data that sits on a grid of its own, such as images; `Histogram` is that for lopsided
    activations.

    Args:
        bins: number of bins, see `HistogramObserver`.

    Example:
        >>> import torch
        >>> outlier = torch.cat([torch.linspace(-1, 1, 10**6), torch.tensor([4.0])])
        >>> state = MSE().update(None, outlier, None)
        >>> MSE().bounds(state, Scheme("int8", symmetric=True)).high.item() < 1.1
        True
    """

    name: ClassVar[str] = "mse"

    def range_of(self, seen: DyadicHistogram, scheme: Scheme) -> tuple[Tensor, Tensor]:
        return search(seen, scheme, together, partial(integrated_error, seen, scheme=scheme))
