"""What the integers of a tensor mean to a kernel.

Tested in tests/runtimes/torch/test_integer_kernels.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Integers:
    """How a tensor's integers are meant; ``low`` and ``high`` bound what may be stored."""

    scale: float
    zero_point: int
    low: int
    high: int
    dtype: torch.dtype

    def clipped(self, minimum: float, maximum: float) -> Integers:
        """The same with the stored range cut to real values in ``[minimum, maximum]``."""

        def nearest(value: float) -> int:
            if abs(value) == float("inf"):
                return self.low if value < 0 else self.high
            stored = round(value / self.scale) + self.zero_point
            return max(self.low, min(self.high, stored))

        low, high = nearest(minimum), nearest(maximum)
        return Integers(self.scale, self.zero_point, low, high, self.dtype)
