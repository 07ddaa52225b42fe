"""The range whose quantized distribution tells the most about the original one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from octavo.numerics.observers.dyadic import DyadicHistogram, HistogramObserver
from octavo.numerics.observers.quantization_error import (
    Grid,
    Moments,
    cumulated,
    estimated_error,
    grid_of_ranges,
    nearest_edge,
)
from octavo.numerics.observers.range_search import search, together
from octavo.numerics.scheme import Scheme


@dataclass(frozen=True)
class Entropy(HistogramObserver):
    """The shrunk min-max range with the least Kullback-Leibler (KL) divergence.

    The calibration of TensorRT (Migacz 2017, "8-bit Inference with TensorRT", GTC S7310): what is
    clipped is added to the outermost bins, giving P; the bins of each integer share their values
    evenly, giving Q; the range with the least KL(P || Q) wins. Thresholds are two-sided where
    the scheme and the data are, so an affine range of one-sided data has one end that moves.

    Divergence alone may clip far too much, and says nothing of a range with fewer bins than
    integers. So only ranges with enough bins take part, whose squared error is estimated to be no
    more than that of min-max.

    Args:
        bins: number of bins, see `HistogramObserver`; below twice the number of integers there
            are few ranges to choose from, and below that number none but min-max.

    Example:
        >>> import torch
        >>> x = torch.cat([torch.linspace(-1, 1, 10**6), torch.tensor([4.0])])
        >>> observer, scheme = Entropy(), Scheme("int8", symmetric=True)
        >>> observer.bounds(observer.update(None, x, None), scheme).high.item() < 2.5
        True
    """

    name: ClassVar[str] = "entropy"

    def range_of(self, seen: DyadicHistogram, scheme: Scheme) -> tuple[Tensor, Tensor]:
        levels = scheme.qmax - scheme.qmin + 1
        if levels > seen.bins:  # no range has a bin for each integer
            return seen.low, seen.high
        moments = Moments.of(seen)
        full = grid_of_ranges(seen, seen.low.unsqueeze(1), seen.high.unsqueeze(1), scheme)
        allowed = estimated_error(moments, full)

        def loss(low: Tensor, high: Tensor) -> Tensor:
            grid = grid_of_ranges(seen, low, high, scheme)
            # A step of at least one bin gives every integer a bin.
            fits = (grid.step >= 1) & (estimated_error(moments, grid) <= allowed)
            return torch.where(fits, divergence(seen, grid, levels), torch.inf)

        return search(seen, scheme, together, loss)


def divergence(seen: DyadicHistogram, grid: Grid, levels: int) -> Tensor:
    """KL(P || Q) of the histogram and its quantization, in nats: float64 ``[rows, ranges]``.

    Sums over bins are differences of running sums, so a range costs ``levels`` look-ups: within the
    cell of an integer Q is constant, hence ``sum P log Q`` is ``mass * log(mass / filled bins)``.
    Exact zeros are left out, as their cell is exact.
    """
    count = seen.nonzero_counts
    below, filled_below, entropy_below = (
        cumulated(values) for values in (count, (count > 0).to(count.dtype), _xlogx(count))
    )
    # Cell j reaches from half a step below its multiple of the step to half a step above.
    cells = torch.arange(levels + 1, device=count.device)
    ends = (grid.lowest.unsqueeze(2) - 0.5 + cells) * grid.step.unsqueeze(2)
    ends = nearest_edge(ends - seen.edges[:, :1].unsqueeze(2), seen.bins)
    mass, filled = (_looked_up(sums, ends).diff(dim=2) for sums in (below, filled_below))

    first, last = ends[:, :, 0], ends[:, :, -1]
    total = below[:, -1:]
    cut = torch.stack([below.gather(1, first), total - below.gather(1, last)], dim=2)
    # The outermost bins, where what is cut ends up, and the cells that they belong to.
    outer_bins = torch.stack([first.clamp(max=seen.bins - 1), (last - 1).clamp(min=0)], dim=2)
    outer = _looked_up(count, outer_bins)
    newly_filled = (cut > 0) & (outer == 0)
    filled[:, :, 0] += newly_filled[:, :, 0]
    filled[:, :, -1] += newly_filled[:, :, 1]

    self_term = entropy_below.gather(1, last) - entropy_below.gather(1, first)
    self_term = self_term + (_xlogx(outer + cut) - _xlogx(outer)).sum(2)
    # A cell that is empty but for what is cut counts as if it had one value.
    level = torch.log(mass.clamp(min=1) / filled.clamp(min=1))
    cross_term = (mass * level).sum(2) + (cut * level[:, :, [0, -1]]).sum(2)
    kept = mass.sum(2).clamp(min=1)
    return (self_term - cross_term) / total.clamp(min=1) - torch.log(total.clamp(min=1) / kept)


def _xlogx(values: Tensor) -> Tensor:
    return torch.xlogy(values, values)


def _looked_up(table: Tensor, index: Tensor) -> Tensor:
    """``table[row, index[row, ...]]`` for a ``[rows, ranges, n]`` index."""
    return table.gather(1, index.flatten(1)).reshape(index.shape)
