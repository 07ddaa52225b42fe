"""Rows of tables of integers: ``octavo::pick_rows`` and ``octavo::sum_bags``.

Tested in tests/runtimes/native/test_embedding.py.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.numerics.native.library import library
from octavo.runtimes.native.operators import register

_NO_SUCH_OFFSET = 2


class _Table(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "scales", "zero_points")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "groups")),
        *((name, ctypes.c_int32) for name in ("bits", "is_signed")),
    )


class _Bags(ctypes.Structure):
    _fields_ = (
        ("offsets", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("offset_count", "index_count", "mode", "padding")),
        ("factors", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Table:
    """Integers as they are stored, and what they mean.

    Attributes:
        values: int8 or uint8 ``[rows, columns]``; or of four bits uint8 ``[rows, columns / 2]``,
            two to a byte.
        scales: float32 ``[rows, groups]``.
        zero_points: int32 of the same shape, or ``None`` where all are 0.
        bits: 8 or 4.
        signed: whether the integers are.
    """

    values: Tensor
    scales: Tensor
    zero_points: Tensor | None
    bits: int
    signed: bool

    @property
    def columns(self) -> int:
        return self.values.shape[1] * 8 // self.bits

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor | None, int, bool]:
        return self.values, self.scales, self.zero_points, self.bits, self.signed

    def as_struct(self) -> _Table:
        """For one call: it points to the tensors' memory.

        Raises:
            ValueError: the tensors do not fit each other.
        """
        (rows, _), columns = self.values.shape, self.columns
        groups = self.scales.shape[1] if self.scales.dim() == 2 else 0
        in_groups = groups and columns % (groups * (1 if self.bits == 8 else 2)) == 0
        tensors = (self.values, self.scales, self.zero_points)
        is_plain = all(t is None or (t.is_contiguous() and t.is_cpu) for t in tensors)
        dtypes = [None if t is None else t.dtype for t in tensors]
        fits = dtypes[0] in (torch.int8, torch.uint8) and dtypes[1] == torch.float32
        fits = fits and dtypes[2] in (None, torch.int32) and self.bits in (4, 8)
        shapes = [tuple(t.shape) for t in tensors[1:] if t is not None]
        if not (in_groups and is_plain and fits and set(shapes) == {(rows, groups)}):
            raise ValueError(f"scales {shapes} for integers {list(self.values.shape)}")
        pointers = (None if t is None else t.data_ptr() for t in tensors)
        return _Table(*pointers, rows, columns, groups, self.bits, self.signed)


def pick_rows(
    indices: Tensor,
    values: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    bits: int,
    signed: bool,
) -> Tensor:
    """float32 ``[*indices.shape, columns]``.

    Args:
        indices: int64 or int32, of any shape.
        values, scales, zero_points, bits, signed: a `Table`.

    Raises:
        IndexError: an index is not one of the table.
        ValueError: shapes or types do not fit each other.
    """
    table = Table(values, scales, zero_points, bits, signed)
    known = table.as_struct()
    ids = _indices(indices)
    result = torch.empty((*indices.shape, table.columns), dtype=torch.float32)
    loaded = _library()
    status = loaded.octavo_pick_rows(
        ctypes.byref(known),
        ctypes.c_void_p(ids.data_ptr()),
        ctypes.c_int64(ids.numel()),
        ctypes.c_void_p(result.data_ptr()),
        torch.get_num_threads(),
    )
    _told(status, ids, known.rows)
    return result


def sum_bags(
    indices: Tensor,
    offsets: Tensor,
    factors: Tensor | None,
    mode: int,
    ends: bool,
    padding: int | None,
    values: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    bits: int,
    signed: bool,
) -> Tensor:
    """The first result of ``aten.embedding_bag``: float32 ``[bags, columns]``.

    Args:
        indices: ``[n]``, of the rows of all bags.
        offsets: ``[bags]``, of their first ones; with ``ends`` and of the end.
        factors: float32 ``[n]``, or ``None``.
        mode: 0 sums rows, 1 takes their mean, 2 their largest values.
        ends: whether the last offset is the end.
        padding: an index that does not count.
        values, scales, zero_points, bits, signed: a `Table`.

    Raises:
        IndexError: an index is beyond the table; or offsets do not begin at 0, are not in order, or
            beyond the indices.
        ValueError: shapes or types do not fit each other.
    """
    table = Table(values, scales, zero_points, bits, signed)
    known = table.as_struct()
    ids, starts = _indices(indices), _indices(offsets)
    if ids.dim() != 1 or starts.dim() != 1 or mode not in (0, 1, 2):
        raise ValueError("indices or offsets of other axes, or another mode")
    if factors is not None:
        factors = factors.to(torch.float32).contiguous()
        if factors.shape != ids.shape or mode:
            raise ValueError("factors are for sums, one for each index")
    count = len(starts) - ends
    if count < 0 or (count == 0 and len(ids)):
        raise ValueError(f"{len(starts)} offsets make no bag for {len(ids)} indices")
    result = torch.empty((count, table.columns), dtype=torch.float32)
    bags = _Bags(
        starts.data_ptr(),
        len(starts),
        len(ids),
        mode,
        -1 if padding is None else padding,
        None if factors is None else factors.data_ptr(),
    )
    status = _library().octavo_sum_bags(
        ctypes.byref(known),
        ctypes.byref(bags),
        ctypes.c_void_p(ids.data_ptr()),
        ctypes.c_int64(count),
        ctypes.c_void_p(result.data_ptr()),
        torch.get_num_threads(),
    )
    if status == _NO_SUCH_OFFSET:
        raise IndexError("offsets that do not begin at 0, are not in order, or beyond the indices")
    _told(status, ids, known.rows)
    return result


def _indices(indices: Tensor) -> Tensor:
    if indices.dtype not in (torch.int64, torch.int32) or not indices.is_cpu:
        raise ValueError(f"{indices.dtype} on {indices.device} where indices are expected")
    return indices.to(torch.int64).contiguous()


def _told(status: int, indices: Tensor, rows: int) -> None:
    if status:
        low, high = map(int, indices.aminmax())
        index = low if low < 0 else high
        raise IndexError(f"index {index} is out of range: it is beyond a table of {rows} rows")


def _library() -> ctypes.CDLL:
    loaded = library()
    if loaded is None:
        raise ValueError("the kernels are not compiled here")
    return loaded


def _shape_of_rows(
    indices: Tensor, values: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, signed: bool
) -> Tensor:
    return scales.new_empty((*indices.shape, values.shape[1] * 8 // bits))


def _shape_of_bags(indices: Tensor, offsets: Tensor, *others: Any) -> Tensor:
    _, _, ends, _, values, scales, _, bits, _ = others
    result: Tensor = scales.new_empty((offsets.shape[0] - ends, values.shape[1] * 8 // bits))
    return result


_TABLE = "Tensor values, Tensor scales, Tensor? zero_points, int bits, bool signed"
register(f"pick_rows(Tensor indices, {_TABLE}) -> Tensor", pick_rows, _shape_of_rows)
register(
    "sum_bags(Tensor indices, Tensor offsets, Tensor? factors, int mode, bool ends, int? padding,"
    f" {_TABLE}) -> Tensor",
    sum_bags,
    _shape_of_bags,
)
