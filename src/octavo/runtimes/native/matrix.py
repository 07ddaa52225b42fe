"""Weights in the order in which the kernels read them, and how they read rows.

Tested in tests/runtimes/native/test_matrix.py.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK, FOUR = 16, 4
NO_MEMORY, NOT_FINITE = 1, 2  # what kernels return, as native/octavo.h has it
MOST_COLUMNS = 2**15  # so that sums of integers fit into 32 bits


class How(IntEnum):
    """How rows become integers."""

    INTEGERS = 0  # they are uint8
    TENSOR_RANGE = 1
    ROW_RANGE = 2
    FLOATS = 3  # of which 16 bits are kept


class ReadingStruct(ctypes.Structure):
    """``octavo_reading`` of native/octavo.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("how", "low", "high", "symmetric")),
        ("scale", ctypes.c_float),
        ("zero_point", ctypes.c_int32),
    )


class MatrixStruct(ctypes.Structure):
    """``octavo_matrix`` of native/octavo.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weights", "scales", "sums", "bias")),
        *((name, ctypes.c_int64) for name in ("rows", "columns")),
    )


@dataclass(frozen=True)
class Reading:
    """How rows are read: integers of a fixed scale, or floats and the range they are rounded to."""

    how: How
    low: int = 0
    high: int = 0
    symmetric: bool = False
    scale: float = 1.0
    zero_point: int = 0

    def as_struct(self) -> ReadingStruct:
        return ReadingStruct(
            self.how, self.low, self.high, self.symmetric, self.scale, self.zero_point
        )


def pack(weight: Tensor) -> Tensor:
    """int8 ``[rows, columns]`` as ``[rows / 16, columns / 4, 16, 4]``, with zeros at the ends."""
    rows, columns = weight.shape
    padded = F.pad(weight, (0, -columns % FOUR, 0, -rows % BLOCK))
    return padded.reshape(-1, BLOCK, padded.shape[1] // FOUR, FOUR).transpose(1, 2).contiguous()


def unpack(packed: Tensor, rows: int, columns: int) -> Tensor:
    """What `pack` was given."""
    wide = packed.transpose(1, 2).reshape(packed.shape[0] * BLOCK, -1)
    return wide[:rows, :columns].contiguous()


@dataclass(frozen=True)
class Matrix:
    """Packed weights, and for each of their rows a scale, the sum of its integers and a bias."""

    weights: Tensor
    scales: Tensor
    sums: Tensor
    bias: Tensor

    @staticmethod
    def of(weight: Tensor, scale: Tensor, bias: Tensor | None) -> Matrix:
        """Of int8 ``[rows, columns]``, float32 ``[rows]`` and float32 ``[rows]``."""
        behind = (0, -len(weight) % BLOCK)
        return Matrix(
            pack(weight),
            F.pad(scale, behind),
            F.pad(weight.sum(1, dtype=torch.int32), behind),
            F.pad(torch.zeros_like(scale) if bias is None else bias, behind),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, with what was added at the ends."""
        blocks, fours = self.weights.shape[:2]
        return blocks * BLOCK, fours * FOUR

    @property
    def tensors(self) -> list[Tensor]:
        return [self.weights, self.scales, self.sums, self.bias]

    def as_struct(self) -> MatrixStruct:
        """For one call: it points to the tensors' memory."""
        return MatrixStruct(*(tensor.data_ptr() for tensor in self.tensors), *self.shape)

    def check(self) -> None:
        """Refuse tensors that are not those of packed weights.

        Raises:
            ValueError: their shape, dtype, order or device is another.
        """
        rows, columns = self.shape if self.weights.dim() == 4 else (0, 0)
        expected: list[tuple[torch.dtype, tuple[int, ...]]]
        expected = [(torch.int8, (rows // BLOCK, columns // FOUR, BLOCK, FOUR))]
        expected += [(d, (rows,)) for d in (torch.float32, torch.int32, torch.float32)]
        for tensor, (dtype, shape) in zip(self.tensors, expected, strict=True):
            is_plain = tensor.is_contiguous() and tensor.device.type == "cpu"
            if not rows or tensor.dtype != dtype or tensor.shape != shape or not is_plain:
                raise ValueError(f"{tensor.dtype}{list(tensor.shape)} is no part of packed weights")
