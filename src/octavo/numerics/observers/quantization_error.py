"""What quantizing the values of a histogram would cost: the sum of squared errors of a range.

Errors are in squared bin widths, which are alike for all ranges of a row. Within a bin values are
taken to be uniform; exact zeros cost nothing, since every range holds zero exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.numerics.affine import qparams_of_range
from octavo.numerics.observers.dyadic import DyadicHistogram
from octavo.numerics.scheme import Scheme


@dataclass(frozen=True)
class Grid:
    """The real numbers that ranges can express, in bin widths of their rows.

    Attributes:
        step: the scale, float64 ``[rows, ranges]``.
        lowest: number of the lowest multiple of ``step``, float64, same shape.
        highest: number of the highest multiple of ``step``, same shape.
    """

    step: Tensor
    lowest: Tensor
    highest: Tensor


def grid_of_ranges(seen: DyadicHistogram, low: Tensor, high: Tensor, scheme: Scheme) -> Grid:
    """The grids of the ranges ``[low, high]``, float32 ``[rows, ranges]``.

    Raises:
        CalibrationError: a range is wider than float32 can tell.
    """
    p = qparams_of_range(low, high, scheme)
    zero_point = p.zero_point.to(torch.float64)
    step = p.scale.to(torch.float64) / seen.width.unsqueeze(1)
    return Grid(step, scheme.qmin - zero_point, scheme.qmax - zero_point)


def integrated_error(seen: DyadicHistogram, low: Tensor, high: Tensor, scheme: Scheme) -> Tensor:
    """The error of each range, integrated over every bin.

    In units of the step, with ``q = clamp(round(u))`` and ``d = u - q``, the antiderivative of the
    squared error is ``q / 12 + d**3 / 3``: a whole cell adds 1/12, and what is clipped grows on
    with the cube. It takes ``bins`` evaluations a range.

    Args:
        seen: the values.
        low: low ends, float32 ``[rows, ranges]``.
        high: high ends, same shape.
        scheme: how the ranges are quantized.

    Returns:
        float64 ``[rows, ranges]``.
    """
    grid = grid_of_ranges(seen, low, high, scheme)
    parts = (part.unsqueeze(2).unbind(1) for part in (grid.step, grid.lowest, grid.highest))
    # One range at a time, so that memory is that of the histogram.
    errors = [_integrated(seen, *one) for one in zip(*parts, strict=True)]
    return torch.stack(errors, dim=1)


def _integrated(seen: DyadicHistogram, step: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    u = seen.edges / step
    q = u.round().clamp_(lowest, highest)
    d = u.sub_(q)
    antiderivative = torch.addcmul(q.div_(12), d, d * d, value=1 / 3)
    per_bin = antiderivative.diff(dim=1)
    return torch.einsum("rb,rb->r", per_bin, seen.nonzero_counts) * step.squeeze(1) ** 3


@dataclass(frozen=True)
class Moments:
    """Sums of powers of the values below each edge: float64 ``[rows, bins + 1]`` each, in bin
    widths. With them the error of a range takes a few look-ups instead of a pass over the bins.
    """

    count: Tensor
    first: Tensor
    second: Tensor
    start: Tensor

    @classmethod
    def of(cls, seen: DyadicHistogram) -> Moments:
        """The moments of the values other than exact zeros."""
        count, middle = seen.nonzero_counts, seen.edges[:, :-1] + 0.5
        return cls(
            cumulated(count),
            cumulated(count * middle),
            cumulated(count * (middle.square() + 1 / 12)),
            seen.edges[:, :1],
        )

    def below(self, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Count, sum and sum of squares of what lies below ``[rows, ranges]`` positions, each
        rounded to the nearest edge.
        """
        edge = nearest_edge(position - self.start, self.count.shape[1] - 1)
        return self.count.gather(1, edge), self.first.gather(1, edge), self.second.gather(1, edge)


def estimated_error(moments: Moments, grid: Grid) -> Tensor:
    """The error of each range in closed form: float64 ``[rows, ranges]``.

    What rounds to zero errs by its own value, what is clipped by its distance from the end, and
    the rest by a twelfth of the squared step on average (Bennett 1948, "Spectra of quantized
    signals", eq. 1.6; Banner et al. 2019, arXiv:1810.05723, eq. 3, with the data's own
    distribution in place of a Laplacian). It takes a few look-ups a range, and ignores where the
    multiples of the step lie in between.
    """
    bottom, top = grid.lowest * grid.step, grid.highest * grid.step
    count, first, second = moments.below(bottom)
    clipped_low = second - 2 * bottom * first + bottom.square() * count
    outside = count
    count, first, second = (
        whole[:, -1:] - part
        for whole, part in zip(
            (moments.count, moments.first, moments.second), moments.below(top), strict=True
        )
    )
    clipped_high = second - 2 * top * first + top.square() * count
    # The cell of zero ends where the range does, if it does so first.
    left = torch.maximum(-grid.step / 2, bottom)
    right = torch.minimum(grid.step / 2, top)
    (count_left, _, left_second), (count_right, _, right_second) = (
        moments.below(left),
        moments.below(right),
    )
    rounded = moments.count[:, -1:] - outside - count - (count_right - count_left)
    return (
        clipped_low
        + clipped_high
        + (right_second - left_second)
        + rounded * grid.step.square() / 12
    )


def cumulated(values: Tensor) -> Tensor:
    """Sums of all values to the left of each edge: ``[rows, bins]`` to ``[rows, bins + 1]``."""
    return torch.nn.functional.pad(values.cumsum(1), (1, 0))


def nearest_edge(position: Tensor, bins: int) -> Tensor:
    """Index of the edge nearest to a position, counted in bins from the first edge."""
    return position.round().clamp(0, bins).to(torch.int64)
