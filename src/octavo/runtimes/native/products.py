"""Weights that a kernel holds, ready to be called: all that does not change was checked before.

A call of the registered operators checks and describes its tensors each time, which takes as long
as a product of a small model. These calls pass addresses.

Tested in tests/runtimes/native/test_products.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from octavo.numerics.native.library import library
from octavo.runtimes.native import four_bits
from octavo.runtimes.native.four_bits import _FourBits
from octavo.runtimes.native.matrix import (
    BLOCK,
    FOUR,
    NO_MEMORY,
    NOT_FINITE,
    How,
    Matrix,
    MatrixStruct,
    Reading,
)


class LayerStruct(ctypes.Structure):
    """``octavo_layer``: a weight of either kind."""

    _fields_ = (("eight", MatrixStruct), ("four", _FourBits))


class Product:
    """``x @ weight.T + bias`` of float32 rows.

    Attributes:
        rows, columns: of the weight.
        layer: for kernels of several layers; it points to tensors that this object holds.
    """

    def __init__(
        self, rows: int, columns: int, layer: LayerStruct, held: tuple[Tensor, ...]
    ) -> None:
        self.rows, self.columns, self.layer, self._held = rows, columns, layer, held
        self._padded = layer.eight.rows or layer.four.rows
        loaded = library()
        assert loaded is not None, "whoever packs weights has asked for the library"
        of = _of_eight if layer.eight.rows else _of_four
        self._call, self._call_rounded = of(loaded, self, False), of(loaded, self, True)

    @classmethod
    def of_eight_bits(cls, matrix: Matrix, rows: int, columns: int) -> Product:
        """Of a packed weight ``[rows, columns]``.

        Raises:
            ValueError: the tensors are not those of such a weight.
        """
        matrix.check()
        if matrix.shape[1] - columns not in range(FOUR) or matrix.shape[0] - rows not in range(16):
            raise ValueError(f"packed weights of {matrix.shape} are not {rows} x {columns}")
        return cls(rows, columns, LayerStruct(eight=matrix.as_struct()), tuple(matrix.tensors))

    @classmethod
    def of_four_bits(
        cls,
        weights: Tensor,
        scales: Tensor,
        zero_points: Tensor,
        rows: int,
        bias: Tensor | None = None,
    ) -> Product:
        """Of a weight as `four_bits.multiply_four_bits` takes it.

        Raises:
            ValueError: the tensors are not those of such a weight.
        """
        columns = four_bits.check(weights, scales, zero_points, rows)
        struct = four_bits.as_struct(weights, scales, zero_points, bias)
        held = (weights, scales, zero_points) + (() if bias is None else (bias,))
        return cls(rows, columns, LayerStruct(four=struct), held)

    def with_bias(self, bias: Tensor) -> Product:
        """The same weight, with a bias float32 ``[rows]``, which is copied."""
        padded = torch.zeros(self._padded)
        padded[: self.rows] = bias
        weights, scales, third, *_ = self._held
        if self.layer.eight.rows:
            matrix = Matrix(weights, scales, third, padded)
            return Product.of_eight_bits(matrix, self.rows, self.columns)
        return Product.of_four_bits(weights, scales, third, self.rows, padded)

    def part(self, first: int, last: int) -> Product:
        """Of some rows of the weight, whose memory it shares.

        Raises:
            ValueError: the first is not one of a block of 16, or the last is not the last of one.
        """
        if first % BLOCK or (last % BLOCK and last != self.rows):
            raise ValueError(f"rows {first} to {last} are no blocks of {BLOCK}")
        blocks = slice(first // BLOCK, -(-last // BLOCK))
        if self.layer.eight.rows:
            each = slice(first, blocks.stop * BLOCK)
            weights, *others = self._held
            matrix = Matrix(weights[blocks], *(values[each] for values in others))
            return Product.of_eight_bits(matrix, last - first, self.columns)
        weights, scales, zero_points = (values[blocks] for values in self._held[:3])
        bias = self._held[3][first : blocks.stop * BLOCK] if len(self._held) > 3 else None
        return Product.of_four_bits(weights, scales, zero_points, last - first, bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Of float32 ``[count, columns]``; NaN in a row that is not finite.

        Raises:
            ValueError: it is of another shape or type.
        """
        if x.dtype != torch.float32 or x.device.type != "cpu" or x.shape[1:] != (self.columns,):
            raise ValueError(f"{x.dtype}{list(x.shape)} for a weight of {self.columns} columns")
        result, _ = self.of_rows(x.resolve_neg().contiguous())
        return result

    def of_rows(self, x: Tensor, rounded: bool = False) -> tuple[Tensor, bool]:
        """``[count, rows]``, and whether all values are finite that were read.

        Args:
            x: float32 on the CPU, rows in one piece, which the caller has made sure of.
            rounded: each row to eight bits, by its range, instead of 16; weights of four bits in
                groups then become int8, by one scale for each of their rows.
        """
        count = x.numel() // self.columns
        result = torch.empty((count, self._padded), dtype=torch.float32)
        call = self._call_rounded if rounded else self._call
        status = call(x.data_ptr(), count, result.data_ptr(), torch.get_num_threads())
        if status == NO_MEMORY:
            raise MemoryError(f"no memory for the digits of {count} rows")
        if self._padded != self.rows:
            result = result[:, : self.rows].contiguous()
        return result, status != NOT_FINITE


_Call = Callable[[int, int, int, int], int]  # x, how many rows, result, threads -> status
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


def _of_eight(loaded: ctypes.CDLL, product: Product, rounded: bool) -> _Call:
    # Looked up by item: a function of our own, which others' arguments are not checked by.
    function: Any = loaded["octavo_multiply_eight_bits"]
    function.argtypes = (_POINTER, _POINTER, _SIZE, _SIZE, _POINTER, _POINTER, ctypes.c_int)
    matrix, columns = ctypes.addressof(product.layer), product.columns
    reading = ctypes.addressof(_ROUNDED if rounded else _FLOATS)
    return lambda x, count, y, threads: cast(
        int, function(matrix, x, columns, count, y, reading, threads)
    )


def _of_four(loaded: ctypes.CDLL, product: Product, rounded: bool) -> _Call:
    matrix = ctypes.addressof(product.layer) + LayerStruct.four.offset
    if rounded:
        widened: Any = loaded["octavo_multiply_four_bits_widened"]
        widened.argtypes = (_POINTER, _POINTER, _SIZE, _POINTER, ctypes.c_int, ctypes.c_int)
        return lambda x, count, y, threads: cast(int, widened(matrix, x, count, y, 1, threads))
    function: Any = loaded["octavo_multiply_four_bits"]
    function.argtypes = (_POINTER, _POINTER, _SIZE, _POINTER, ctypes.c_int)
    return lambda x, count, y, threads: cast(int, function(matrix, x, count, y, threads))


_FLOATS = Reading(How.FLOATS).as_struct()
_ROUNDED = Reading(How.ROW_RANGE, 0, 255).as_struct()
