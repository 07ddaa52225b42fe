"""Columns of a weight that are rounded one after the other, each error passed on to those behind
it: what `octavo.quantization.weights.gptq` does for every column of every layer.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.numerics.native.library import library

MOST_COLUMNS = 64  # in one call: OCTAVO_MOST_COLUMNS of native/octavo.h


class _Columns(ctypes.Structure):
    """``octavo_columns`` of native/octavo.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("left", "integers", "errors")),
        *((name, ctypes.c_void_p) for name in ("scales", "zero_points", "shares")),
        *((name, ctypes.c_int64) for name in ("columns", "groups", "rows")),
        *((name, ctypes.c_float) for name in ("lowest", "highest")),
    )


@dataclass(frozen=True)
class Columns:
    """A weight in groups of rows, its columns in the order in which they are rounded.

    Attributes:
        left: what is to be rounded, float32 ``[columns, groups, rows]``.
        integers, errors: of that shape; `round` writes to them.
        scales, zero_points: of that shape.
        shares: of a column's error, what each column behind it takes back: float32
            ``[columns, columns, groups, 1]``.
        lowest, highest: of the integers.
    """

    left: Tensor
    integers: Tensor
    errors: Tensor
    scales: Tensor
    zero_points: Tensor
    shares: Tensor
    lowest: int
    highest: int

    @property
    def has_kernel(self) -> bool:
        """Whether there is a library, and the tensors are where it can read them."""
        return library() is not None and self.left.device.type == "cpu"

    def round(self, start: int, stop: int) -> None:
        """Round the columns from ``start`` to before ``stop``, `MOST_COLUMNS` at most.

        Raises:
            ValueError: a tensor is of another shape, type or order of memory.
        """
        columns, groups, rows = self.left.shape
        tensors = (self.left, self.integers, self.errors, self.scales, self.zero_points)
        alike = all(_is_plain(t) and t.shape == self.left.shape for t in tensors)
        of_shares = self.shares.shape == (columns, columns, groups, 1) and _is_plain(self.shares)
        if not (alike and of_shares and 0 <= start < stop <= min(columns, start + MOST_COLUMNS)):
            raise ValueError(f"columns {start} to {stop} of others than `Columns` says")
        loaded = library()
        assert loaded is not None, "`has_kernel` was not asked"
        addresses = (tensor.data_ptr() for tensor in (*tensors, self.shares))
        call = _Columns(*addresses, columns, groups, rows, self.lowest, self.highest)
        loaded.octavo_round_columns(ctypes.byref(call), *map(ctypes.c_int64, (start, stop)))


def _is_plain(tensor: Tensor) -> bool:
    cpu = tensor.device.type == "cpu"
    return tensor.dtype == torch.float32 and tensor.is_contiguous() and cpu
