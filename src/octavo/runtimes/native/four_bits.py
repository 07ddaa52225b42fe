"""Products with weights of four bits: ``octavo::multiply_four_bits``.

Of each row of the input 16 bits are kept.

Tested in tests/runtimes/native/test_four_bits.py.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.numerics.native.library import library
from octavo.runtimes.native.matrix import BLOCK, MOST_COLUMNS, NO_MEMORY
from octavo.runtimes.native.operators import register

CHUNK = 32  # columns that stand together: they divide those of a group
STEP = 1 / 32512  # of the input, as a share of the largest value in a row


class _FourBits(ctypes.Structure):
    """``octavo_four_bits`` of native/octavo.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weights", "scales", "zero_points", "bias")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "groups")),
    )


def fits(columns: int, groups: int) -> bool:
    """Whether there is a kernel for rows of so many columns in so many groups."""
    return columns <= MOST_COLUMNS and columns % (groups * CHUNK) == 0


def pack(integers: Tensor) -> Tensor:
    """Integers 0..15 ``[rows, columns]`` as uint8 ``[rows / 16, columns / 32, 4, 16, 4]``, with
    rows of zeros at the end.
    """
    rows, columns = integers.shape
    padded = F.pad(integers.to(torch.uint8), (0, 0, 0, -rows % BLOCK))
    fours = padded.reshape(-1, BLOCK, columns // CHUNK, 8, 4).permute(0, 2, 3, 1, 4)
    return (fours[:, :, ::2] | (fours[:, :, 1::2] << 4)).contiguous()


def unpack(packed: Tensor, rows: slice, count: int) -> Tensor:
    """Some of the ``count`` rows that `pack` was given: uint8 ``[rows, columns]``."""
    start, stop, _ = rows.indices(count)
    first = start // BLOCK
    part = packed[first : -(-stop // BLOCK)]
    fours = torch.stack([part & 0xF, part >> 4], 3).reshape(*part.shape[:2], 8, BLOCK, 4)
    whole = fours.permute(0, 3, 1, 2, 4).reshape(len(part) * BLOCK, part.shape[1] * CHUNK)
    return whole[start - first * BLOCK : stop - first * BLOCK]


def by_blocks(values: Tensor) -> Tensor:
    """Values of groups ``[rows, groups]`` as ``[rows / 16, groups, 16]``."""
    padded = F.pad(values, (0, 0, 0, -len(values) % BLOCK))
    return padded.reshape(-1, BLOCK, values.shape[1]).transpose(1, 2).contiguous()


def multiply_four_bits(
    x: Tensor, weights: Tensor, scales: Tensor, zero_points: Tensor, rows: int
) -> Tensor:
    """``x @ weight.T``: float32 ``[count, rows]``.

    Args:
        x: float32 ``[count, columns]``.
        weights: uint8, from `pack`.
        scales: float32, from `by_blocks`.
        zero_points: uint8, from `by_blocks`.
        rows: of the weight.

    Raises:
        ValueError: shapes or types do not fit each other.
    """
    columns = check(weights, scales, zero_points, rows)
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.dim() != 2:
        raise ValueError(f"rows of {x.dtype}{list(x.shape)} where float32 is expected")
    if x.shape[1] != columns:
        raise ValueError(f"rows of {x.shape[1]} values for a weight of {rows} x {columns}")
    x, padded = x.resolve_neg().contiguous(), len(weights) * BLOCK
    result = torch.empty((len(x), padded), dtype=torch.float32)
    matrix = as_struct(weights, scales, zero_points)
    source, target = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, result))
    count, threads = ctypes.c_int64(len(x)), torch.get_num_threads()
    loaded = library()
    if (
        loaded is None
        or loaded.octavo_multiply_four_bits(ctypes.byref(matrix), source, count, target, threads)
        == NO_MEMORY
    ):
        raise MemoryError(f"no memory for the digits of {len(x)} rows")
    return result if padded == rows else result[:, :rows].contiguous()


def as_struct(
    weights: Tensor, scales: Tensor, zero_points: Tensor, bias: Tensor | None = None
) -> _FourBits:
    """For calls as long as the tensors live; ``bias`` is float32, for all rows that are packed."""
    parts = (weights, scales, zero_points, bias)
    return _FourBits(
        *(None if tensor is None else tensor.data_ptr() for tensor in parts),
        rows=len(weights) * BLOCK,
        columns=weights.shape[1] * CHUNK,
        groups=scales.shape[1],
    )


def check(weights: Tensor, scales: Tensor, zero_points: Tensor, rows: int) -> int:
    """How many columns a packed weight has.

    Raises:
        ValueError: the tensors are not those of a packed weight of so many rows.
    """
    columns = weights.shape[1] * CHUNK if weights.dim() == 5 else 0
    blocks, groups = -(-rows // BLOCK), scales.shape[1] if scales.dim() == 3 else 0
    expected = {
        (torch.uint8, (blocks, columns // CHUNK, 4, BLOCK, 4)): weights,
        (torch.float32, (blocks, groups, BLOCK)): scales,
        (torch.uint8, (blocks, groups, BLOCK)): zero_points,
    }
    for (dtype, shape), tensor in expected.items():
        is_plain = tensor.is_contiguous() and tensor.device.type == "cpu"
        if tensor.dtype != dtype or tensor.shape != shape or not is_plain:
            raise ValueError(f"{tensor.dtype}{list(tensor.shape)} is no part of packed weights")
    if min(columns, rows, groups) < 1 or not fits(columns, groups):
        raise ValueError(f"{groups} groups of {columns} columns")
    return columns


def _shapes(x: Tensor, weights: Tensor, scales: Tensor, zero_points: Tensor, rows: int) -> Tensor:
    return x.new_empty((x.shape[0], rows))


register(
    "multiply_four_bits(Tensor x, Tensor weights, Tensor scales, Tensor zero_points, int rows)"
    " -> Tensor",
    multiply_four_bits,
    _shapes,
)
