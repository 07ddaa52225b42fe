"""How far rounded values are from exact ones, as sums over batches.

Tested in tests/measuring/layers/test_layer_errors.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from octavo.measuring.layers.error_table import LayerError
from octavo.numerics.sqnr import sqnr_db

_PART = 2**16  # values


class ErrorSums:
    """Signal, noise and likeness of two tensors; memory does not depend on how much was seen.

    Example:
        >>> sums = ErrorSums()
        >>> sums.update(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 3.1]))
        >>> round(sums.sqnr_db, 1), round(sums.mse, 3)
        (30.0, 0.005)
    """

    def __init__(self) -> None:
        self.count = 0
        self.signal = self.noise = self.product = self.power = 0.0

    def update(self, exact: Tensor, rounded: Tensor) -> None:
        """Add one batch: two float tensors of the same shape."""
        for one, other in _parts(exact, rounded):
            one = one.float()
            self.add(one, one - other, float(torch.dot(one, one)))

    def add(self, exact: Tensor, error: Tensor, signal: float) -> None:
        """Add a part.

        Args:
            exact: float32 ``[N]``.
            error: exact minus rounded.
            signal: the sum of the squares of ``exact``.
        """
        noise, along = float(torch.dot(error, error)), float(torch.dot(exact, error))
        self.signal += signal
        self.noise += noise
        self.product += signal - along
        self.power += max(0.0, signal - 2 * along + noise)
        self.count += exact.numel()

    @property
    def sqnr_db(self) -> float:
        """Signal over noise in dB: infinite where nothing was lost, minus infinite where all was
        noise.
        """
        return sqnr_db(self.signal, self.noise)

    @property
    def mse(self) -> float:
        """Mean squared error."""
        return self.noise / self.count if self.count else 0.0

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two; 1 where both are zero."""
        length = math.sqrt(self.signal * self.power)
        return min(1.0, self.product / length) if length else float(self.signal == self.power)


class RangeSums:
    """The range of a tensor's exact values, against what its integers can hold."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.clipped = self.count = 0

    def update(self, exact: Tensor, ends: tuple[float, float] | None) -> None:
        """Add one batch; ``ends`` are what the lowest and the highest integer stand for, half a
        step beyond them included.
        """
        low, high = map(float, torch.aminmax(exact))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += exact.numel()
        if ends is not None and (low < ends[0] or high > ends[1]):
            self.clipped += int(torch.count_nonzero((exact < ends[0]) | (exact > ends[1])))

    @property
    def clipped_share(self) -> float:
        """The share of values that the integers cannot reach."""
        return self.clipped / self.count if self.count else 0.0


class LayerSums:
    """All sums of one layer.

    Attributes:
        own: error of its own rounding.
        accumulated: with the error of all layers before.
        seen: the exact values' range.
        integers: the lowest and the highest in use; ``None`` for a layer that gives floats.
    """

    def __init__(self) -> None:
        self.own, self.accumulated, self.seen = ErrorSums(), ErrorSums(), RangeSums()
        self.integers: tuple[int, int] | None = None

    def update(
        self,
        exact: Tensor,
        alone: Tensor,
        all_in: Tensor,
        scale: float | None = None,
        zero_point: int | None = None,
        ends: tuple[float, float] | None = None,
    ) -> None:
        """Add one batch.

        Args:
            exact: what the float model has, of any shape.
            alone: what the layer makes of exact values, of the same shape.
            all_in: what it makes of what the layers before it made.
            scale, zero_point: the latter two are integers that stand for
                ``(q - zero_point) * scale``; ``None`` for floats.
            ends: as for `RangeSums.update`.
        """
        for one, *rounded in _parts(exact, alone, all_in):
            one = one.float()
            signal = float(torch.dot(one, one))
            self.seen.update(one, ends)
            for sums, other in zip((self.own, self.accumulated), rounded, strict=True):
                values = other.to(torch.float32, copy=True)
                if zero_point:
                    values.sub_(zero_point)
                error = torch.sub(one, values, alpha=1.0 if scale is None else scale, out=values)
                sums.add(one, error, signal)
            if scale is not None:
                self._use(*map(int, torch.aminmax(rounded[0])))

    def row(self, tensor: str, kind: str, op: str, values: str, unused: float = 0.0) -> LayerError:
        """The row of a table; arguments are those that the sums do not know."""
        return LayerError(
            tensor=tensor,
            kind=kind,
            op=op,
            values=values,
            sqnr_db=self.own.sqnr_db,
            accumulated_sqnr_db=self.accumulated.sqnr_db,
            mse=self.own.mse,
            cosine=self.own.cosine,
            low=self.seen.low,
            high=self.seen.high,
            clipped=self.seen.clipped_share,
            unused=unused,
        )

    def _use(self, low: int, high: int) -> None:
        before = self.integers or (low, high)
        self.integers = min(low, before[0]), max(high, before[1])


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, flat, in parts: so all passes over a part find it in the cache.

    In the order of the first one's memory, so that it is not copied, nor those that are like it.
    """
    if tensors[0].dim() == 4 and tensors[0].is_contiguous(memory_format=torch.channels_last):
        tensors = tuple(tensor.permute(0, 2, 3, 1) for tensor in tensors)
    yield from zip(*(tensor.reshape(-1).split(_PART) for tensor in tensors), strict=True)
