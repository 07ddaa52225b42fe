"""Products with weights of eight bits: ``octavo::multiply_eight_bits``.

Of each row of the input 16 bits are kept, or it is rounded by its own range or that of all.

Tested in tests/runtimes/native/test_eight_bits.py.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from octavo.numerics.native.library import library
from octavo.runtimes.native.matrix import FOUR, MOST_COLUMNS, NO_MEMORY, How, Matrix, Reading
from octavo.runtimes.native.operators import register

STEP = 1 / 32767  # of the input, as a share of the largest value in a row


def multiply_eight_bits(
    x: Tensor,
    weights: Tensor,
    scales: Tensor,
    sums: Tensor,
    bias: Tensor,
    rows: int,
    how: int = How.FLOATS,
    low: int = 0,
    high: int = 0,
    symmetric: bool = False,
) -> Tensor:
    """``x @ weight.T + bias``: float32 ``[count, rows]``.

    Args:
        x: float32 ``[count, columns]``.
        weights, scales, sums, bias: `Matrix.tensors` of the weight.
        rows: of the weight.
        how, low, high, symmetric: a `Reading` of floats, which are rounded as
            ``octavo::fake_quantize_dynamic`` rounds them, or keep 16 bits.

    Raises:
        ValueError: shapes or types do not fit each other.
    """
    matrix = Matrix(weights, scales, sums, bias)
    matrix.check()
    padded, columns = matrix.shape
    width = x.shape[1] if x.dim() == 2 else 0
    if x.dtype != torch.float32 or x.device.type != "cpu" or width < 1:
        raise ValueError(f"rows of {x.dtype}{list(x.shape)} where float32 is expected")
    if columns != width + -width % FOUR or columns > MOST_COLUMNS or not 0 <= padded - rows < 16:
        raise ValueError(f"rows of {width} values for a weight of {rows} x {columns}")
    if how == How.INTEGERS:
        raise ValueError("rows of floats that are read as integers")
    x, reading = x.resolve_neg().contiguous(), Reading(How(how), low, high, symmetric)
    result = torch.empty((len(x), padded), dtype=torch.float32)
    source, target = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, result))
    sizes, threads = (ctypes.c_int64(width), ctypes.c_int64(len(x))), torch.get_num_threads()
    loaded = library()
    if (
        loaded is None
        or loaded.octavo_multiply_eight_bits(
            ctypes.byref(matrix.as_struct()),
            source,
            *sizes,
            target,
            ctypes.byref(reading.as_struct()),
            threads,
        )
        == NO_MEMORY
    ):
        raise MemoryError(f"no memory for the digits of {len(x)} rows")
    return result if padded == rows else result[:, :rows].contiguous()


def _shapes(x: Tensor, *others: Any) -> Tensor:
    rows = others[4]
    return x.new_empty((x.shape[0], rows))


register(
    "multiply_eight_bits(Tensor x, Tensor weights, Tensor scales, Tensor sums, Tensor bias,"
    " int rows, int how=3, int low=0, int high=0, bool symmetric=False) -> Tensor",
    multiply_eight_bits,
    _shapes,
)
