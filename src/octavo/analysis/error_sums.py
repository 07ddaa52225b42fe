"""How far rounded values are from exact ones, as sums over batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PART = 2**17  # values


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

    def update(
        self, exact: Tensor, rounded: Tensor, scale: float = 1.0, zero_point: int = 0
    ) -> None:
        """Add one batch.

        Args:
            exact: float, of any shape.
            rounded: of the same shape; integers stand for ``(q - zero_point) * scale``.
            scale, zero_point: of integers.
        """
        # A part at a time, so that the passes over it find it in the cache.
        parts = zip(exact.reshape(-1).split(_PART), rounded.reshape(-1).split(_PART), strict=True)
        for one, other in parts:
            one = one.float()
            error = other.to(torch.float32, copy=True).sub_(zero_point).mul_(scale).sub_(one)
            self._add(*(float(torch.dot(*p)) for p in ((one, one), (error, error), (one, error))))
        self.count += exact.numel()

    def _add(self, signal: float, noise: float, error_along: float) -> None:
        self.signal += signal
        self.noise += noise
        self.product += signal + error_along
        self.power += max(0.0, signal + 2 * error_along + noise)

    @property
    def sqnr_db(self) -> float:
        """Signal over noise in dB: infinite where nothing was lost, minus infinite where all was
        noise.
        """
        if self.noise == 0.0:
            return math.inf
        return 10.0 * math.log10(self.signal / self.noise) if self.signal else -math.inf

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
        low, high = torch.aminmax(exact)
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        self.count += exact.numel()
        if ends is not None and (float(low) < ends[0] or float(high) > ends[1]):
            self.clipped += int(((exact < ends[0]) | (exact > ends[1])).sum())

    @property
    def clipped_share(self) -> float:
        """The share of values that the integers cannot reach."""
        return self.clipped / self.count if self.count else 0.0
