"""A histogram whose bins are powers of two wide, so that merging two is exact.

Bin ``k`` of width ``2**e`` covers ``[k * 2**e, (k + 1) * 2**e)``. The width is the smallest with
which the bins reach from the lowest to the highest value, so it is a function of these two alone;
and ``floor(x / 2**(e + 1)) == floor(x / 2**e) // 2`` without rounding. Hence the histogram of a
data set is the same, count for count, in whatever order and parts the data came.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from octavo.errors import CalibrationError
from octavo.numerics.native.observing import Counted, reads
from octavo.numerics.observers.base import (
    Bounds,
    check_not_empty,
    check_setting,
    extrema,
    rows_of,
)
from octavo.numerics.scheme import Scheme

# Values that are counted at a time: their float64 and int64 copies, 2 MiB each, stay in a cache.
_VALUES_AT_A_TIME = 2**18
# Counts whose rows are searched at a time, which bounds the memory of the search.
_COUNTS_AT_A_TIME = 2**16
# float32 has 24 bits of precision, and none of its values is finer than 2**-149.
_PRECISION = 24
_FINEST = -149


@dataclass(frozen=True)
class DyadicHistogram:
    """How many values fell into each bin; one row for a tensor, or one for each channel.

    Attributes:
        counts: int64 ``[rows, bins]``; its first bin holds the lowest value.
        zeros: int64 ``[rows]``, how many values are exactly zero (they are in ``counts`` too).
        low: lowest value seen, float32 ``[]`` or ``[rows]``.
        high: highest value seen, same shape.
        batches: number of batches seen.
    """

    counts: Tensor
    zeros: Tensor
    low: Tensor
    high: Tensor
    batches: int = 1

    @property
    def bins(self) -> int:
        return self.counts.shape[1]

    @cached_property
    def grid(self) -> tuple[Tensor, Tensor]:
        """Exponent of the bin width and number of the first bin, int64 ``[rows]`` each."""
        return dyadic_grid(self.low.reshape(-1), self.high.reshape(-1), self.bins)

    @cached_property
    def width(self) -> Tensor:
        """Bin width, float64 ``[rows]``."""
        return _power_of_two(self.grid[0])

    @cached_property
    def edges(self) -> Tensor:
        """Where bins start and end, in bin widths: float64 ``[rows, bins + 1]``."""
        steps = torch.arange(self.bins + 1, device=self.counts.device)
        return (self.grid[1].unsqueeze(1) + steps).to(torch.float64)

    @cached_property
    def nonzero_counts(self) -> Tensor:
        """The counts without exact zeros, which no range rounds: float64 ``[rows, bins]``."""
        zero_bin = -self.grid[1]
        # Where no bin is that of zero there are no zeros, and nothing is taken from any.
        zero_bin = zero_bin.clamp(0, self.bins - 1).unsqueeze(1)
        return self.counts.scatter_add(1, zero_bin, -self.zeros.unsqueeze(1)).to(torch.float64)

    def blocks_of_rows(self) -> Iterator[DyadicHistogram]:
        """The histogram in pieces of few rows, each with ``[rows]`` extrema."""
        low, high = self.low.reshape(-1), self.high.reshape(-1)
        height = max(1, _COUNTS_AT_A_TIME // self.bins)
        for start in range(0, len(low), height):
            rows = slice(start, start + height)
            yield DyadicHistogram(
                self.counts[rows], self.zeros[rows], low[rows], high[rows], self.batches
            )


def dyadic_grid(low: Tensor, high: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """The finest grid on which ``bins`` bins hold both values, none finer than their float32 is.

    Args:
        low: lowest values, finite float32 ``[rows]``.
        high: highest values, same shape.
        bins: number of bins.

    Returns:
        Exponent of the bin width and number of the first bin, int64 ``[rows]`` each.

    Example:
        >>> exponent, first = dyadic_grid(torch.tensor([-1.0]), torch.tensor([2.5]), bins=8)
        >>> exponent.item(), first.item()
        (-1, -2)
    """
    low, high = low.to(torch.float64), high.to(torch.float64)
    magnitude = torch.maximum(low.abs(), high.abs())
    resolution = (_exponent(magnitude) - _PRECISION).clamp(min=_FINEST)
    resolution = torch.where(magnitude > 0, resolution, _FINEST)
    # With (high - low) / bins < 2**e, up to a rounding, e - 2 is too fine and e + 1 is enough.
    tight = torch.where(high > low, _exponent((high - low) / bins) - 2, _FINEST)
    exponent = torch.maximum(tight, resolution)
    for _ in range(3):
        inverse = _power_of_two(-exponent)
        exponent += (high * inverse).floor() - (low * inverse).floor() >= bins
    return exponent, (low * _power_of_two(-exponent)).floor().to(torch.int64)


def dyadic_histogram(x: Tensor, channel_axis: int | None, bins: int) -> DyadicHistogram:
    """The histogram of one batch, of any shape and dtype.

    Raises:
        CalibrationError: the tensor is empty, or a value is not finite.
    """
    x = x.detach()
    low, high = extrema(x, channel_axis)
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise CalibrationError(
            f"a tensor of shape {list(x.shape)} has values that are not finite: they span "
            f"[{low.min().item()}, {high.max().item()}]"
        )
    exponent, first = dyadic_grid(low.reshape(-1), high.reshape(-1), bins)
    inverse = _power_of_two(-exponent).unsqueeze(1)
    counts = torch.zeros(len(first), bins, dtype=torch.int64, device=x.device)
    zeros = torch.zeros(len(first), dtype=torch.int64, device=x.device)
    for rows, values in _pieces(rows_of(x, channel_axis)):
        values = values.to(torch.float32)
        # Row by row, since torch counts along a dimension several times as slowly.
        nonzero = torch.stack([row.count_nonzero() for row in values])
        zeros[rows] += values.shape[1] - nonzero
        # In float64, since in float32 a tiny negative number over a wide bin would become zero.
        index = values.to(torch.float64).mul_(inverse[rows]).floor_().to(torch.int64)
        shelf = torch.arange(len(values), device=x.device) * bins  # where a row's bins begin
        index += (shelf - first[rows]).unsqueeze(1)
        histogram = torch.bincount(index.reshape(-1), minlength=len(values) * bins)
        counts[rows] += histogram.reshape(-1, bins)
    return DyadicHistogram(counts, zeros, low, high)


def merge_histograms(one: DyadicHistogram, other: DyadicHistogram) -> DyadicHistogram:
    """The histogram of all values of both: exactly that of one pass over them."""
    low, high = torch.minimum(one.low, other.low), torch.maximum(one.high, other.high)
    grid = dyadic_grid(low.reshape(-1), high.reshape(-1), one.bins)
    return DyadicHistogram(
        _regridded(one, *grid) + _regridded(other, *grid),
        one.zeros + other.zeros,
        low,
        high,
        one.batches + other.batches,
    )


def histogram_with(
    seen: DyadicHistogram | None, x: Tensor, channel_axis: int | None, bins: int
) -> DyadicHistogram:
    """The histogram of what was seen and of one more batch, of any shape and dtype.

    Octavo's own kernel counts where it is compiled and the tensor is one of the CPU; torch's
    operators count the same elsewhere.

    Raises:
        CalibrationError: the tensor is empty, or a value is not finite.
    """
    check_not_empty(x)
    if reads(x):
        rows = rows_of(x.detach(), channel_axis).to(torch.float32)
        state = Counted.nothing(len(rows), bins) if seen is None else _copied(seen)
        if state.take_in(rows):
            shape = () if channel_axis is None else (len(rows),)
            low, high = state.low.reshape(shape), state.high.reshape(shape)
            batches = 1 if seen is None else 1 + seen.batches
            return DyadicHistogram(state.counts, state.zeros, low, high, batches)
    new = dyadic_histogram(x, channel_axis, bins)
    return new if seen is None else merge_histograms(seen, new)


@dataclass(frozen=True)
class HistogramObserver:
    """An observer whose state is a `DyadicHistogram`; a subclass says how it chooses a range.

    Merging is exact in any order. A state takes 8 bytes a bin, for each channel if the scheme is
    per channel: 16 KiB with the default, whatever the number of batches. For weights in groups,
    where scales are many and values in each few, eight bins for each integer (128 for 4 bits) are a
    fair price: then errors are right on the average of the groups, not in every one.

    Args:
        bins: number of bins; at least half of them are in use once the data is spread.

    Raises:
        PlanError: ``bins`` is not an integer in [16, 65536].
    """

    bins: int = field(default=2048, kw_only=True)
    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_setting(
            "bins",
            self.bins,
            lambda bins: isinstance(bins, int) and 16 <= bins <= 65536,
            "an integer in [16, 65536]",
        )

    def update(
        self, state: DyadicHistogram | None, x: Tensor, channel_axis: int | None
    ) -> DyadicHistogram:
        return histogram_with(state, x, channel_axis, self.bins)

    def merge(self, one: DyadicHistogram, other: DyadicHistogram) -> DyadicHistogram:
        return merge_histograms(one, other)

    def bounds(self, state: DyadicHistogram, scheme: Scheme) -> Bounds:
        ranges = [self.range_of(block, scheme) for block in state.blocks_of_rows()]
        low, high = (torch.cat(ends).reshape(state.low.shape) for ends in zip(*ranges, strict=True))
        return Bounds(low, high, state.batches)

    def range_of(self, seen: DyadicHistogram, scheme: Scheme) -> tuple[Tensor, Tensor]:
        """Low and high end, float32 ``[rows]`` each, of what is worth keeping."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        return {"observer": self.name} | asdict(self)


def _copied(seen: DyadicHistogram) -> Counted:
    low, high = seen.low.reshape(-1).clone(), seen.high.reshape(-1).clone()
    return Counted(seen.counts.clone(), seen.zeros.clone(), low, high)


def _exponent(x: Tensor) -> Tensor:
    """The smallest e with ``x < 2**e``, int64."""
    return torch.frexp(x).exponent.to(torch.int64)


def _power_of_two(exponent: Tensor) -> Tensor:
    return torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent)


def _pieces(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """A ``[rows, values]`` tensor in pieces of bounded size, with the rows that each is from."""
    height = max(1, _VALUES_AT_A_TIME // x.shape[1])
    for start in range(0, len(x), height):
        rows = slice(start, start + height)
        for piece in x[rows].split(_VALUES_AT_A_TIME, dim=1):
            yield rows, piece


def _regridded(seen: DyadicHistogram, exponent: Tensor, first: Tensor) -> Tensor:
    """The counts on a grid that is no finer and covers as much: int64 ``[rows, bins]``."""
    old_exponent, old_first = seen.grid
    # Bin numbers have 25 bits at most, so that a larger shift gives no other result.
    doublings = (exponent - old_exponent).clamp(max=_PRECISION + 1).unsqueeze(1)
    numbers = old_first.unsqueeze(1) + torch.arange(seen.bins, device=first.device)
    # Only empty bins can end up outside.
    index = ((numbers >> doublings) - first.unsqueeze(1)).clamp(0, seen.bins - 1)
    return torch.zeros_like(seen.counts).scatter_add(1, index, seen.counts)
