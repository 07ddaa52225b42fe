"""What observers do with each value of a batch, on float32 ``[rows, values]``: extrema and counts.

`octavo.numerics.observers.dyadic` says what the bins are.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.numerics.native.library import library

_NO_MEMORY = 1


def reads(x: Tensor) -> bool:
    """Whether there is a library, and it can read a tensor."""
    return library() is not None and x.device.type == "cpu" and x.layout == torch.strided


def extrema(x: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value of each row, float32 ``[rows]``; NaN where there is one.

    Args:
        x: float32 ``[rows, values]`` that the library `reads`, with a value in each row.

    Raises:
        ValueError: it is of another shape or type.
    """
    x = _checked(x, len(x))
    low, high = torch.empty(len(x)), torch.empty(len(x))
    addresses = (ctypes.c_void_p(end.data_ptr()) for end in (low, high))
    _library().octavo_extrema(
        ctypes.c_void_p(x.data_ptr()),
        *map(ctypes.c_int64, x.shape),
        *addresses,
        torch.get_num_threads(),
    )
    return low, high


def are_finite(x: Tensor, threads: int | None = None) -> bool:
    """Whether no value is NaN or an infinity.

    Args:
        x: float32 that the library `reads`, in one piece of memory.
        threads: that look, at most; ``None`` is torch's number.
    """
    low, high = ctypes.c_float(), ctypes.c_float()
    if x.numel():
        sizes = (ctypes.c_int64(1), ctypes.c_int64(x.numel()))
        ends = (ctypes.byref(low), ctypes.byref(high))
        threads = threads or torch.get_num_threads()
        _library().octavo_extrema(ctypes.c_void_p(x.data_ptr()), *sizes, *ends, threads)
    return math.isfinite(low.value) and math.isfinite(high.value)


class _Histogram(ctypes.Structure):
    """``octavo_histogram`` of native/octavo.h."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("bins", ctypes.c_int64),
        ("counts", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("low", ctypes.c_void_p),
        ("high", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Counted:
    """The tensors of a histogram, which `take_in` writes to.

    Attributes:
        counts: int64 ``[rows, bins]``.
        zeros: int64 ``[rows]``.
        low, high: float32 ``[rows]``; infinity and minus infinity where nothing was seen.
    """

    counts: Tensor
    zeros: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def nothing(cls, rows: int, bins: int) -> Counted:
        return cls(
            torch.zeros((rows, bins), dtype=torch.int64),
            torch.zeros(rows, dtype=torch.int64),
            torch.full((rows,), torch.inf),
            torch.full((rows,), -torch.inf),
        )

    def take_in(self, x: Tensor) -> bool:
        """Count more values: float32 ``[rows, values]``, at least one a row.

        Returns:
            Whether all of them are finite; if not, nothing is changed.

        Raises:
            ValueError: shapes or types do not fit each other.
        """
        rows, bins = self.counts.shape
        x = _checked(x, rows)
        expected = (torch.int64, torch.int64, torch.float32, torch.float32)
        tensors = (self.counts, self.zeros, self.low, self.high)
        if not all(
            t.dtype == dtype and t.is_contiguous() and t.device.type == "cpu" and len(t) == rows
            for t, dtype in zip(tensors, expected, strict=True)
        ):
            raise ValueError("a histogram of other types than `Counted` says")
        addresses = (tensor.data_ptr() for tensor in tensors)
        histogram = _Histogram(x.data_ptr(), rows, x.shape[1], bins, *addresses)
        status = _library().octavo_observe(ctypes.byref(histogram), torch.get_num_threads())
        if status == _NO_MEMORY:
            raise MemoryError(f"no memory for {rows} histograms of {bins} bins")
        return bool(status == 0)


def _checked(x: Tensor, rows: int) -> Tensor:
    """Contiguous, which it is already as a rule."""
    if x.dtype != torch.float32 or x.dim() != 2 or len(x) != rows or not x.numel() or not reads(x):
        raise ValueError(f"values of {x.dtype}{list(x.shape)} on {x.device} for {rows} rows")
    return x.contiguous()


def _library() -> ctypes.CDLL:
    loaded = library()
    assert loaded is not None, "`reads` was not asked"
    return loaded
