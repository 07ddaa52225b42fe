"""Layer norm, RMS norm and softmax of rows, from floats or uint8 to either: ``octavo::normalize``.

Tested in tests/runtimes/native/test_normalization.py.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from octavo.numerics.native.library import library
from octavo.runtimes.native.operators import register

KINDS = {"layer_norm": 0, "rms_norm": 1, "softmax": 2}  # as native/octavo.h counts them


class NormalizationStruct(ctypes.Structure):
    """``octavo_normalization`` of native/octavo.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("count", "columns")),
        *((name, ctypes.c_int32) for name in ("kind", "x_zero_point")),
        ("x", ctypes.c_void_p),
        *((name, ctypes.c_float) for name in ("x_scale", "eps")),
        *((name, ctypes.c_void_p) for name in ("addend", "weight", "bias", "out", "rounded")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("zero_point", "low", "high")),
        ("scratch", ctypes.c_void_p),
    )


def normalize(
    x: Tensor,
    addend: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    kind: str,
    columns: int,
    eps: float,
    source: list[float],
    floats: bool,
    out: list[float],
) -> tuple[Tensor, Tensor]:
    """Each row less its mean, over its standard deviation (or what ``kind`` is), in both types.

    Args:
        x: float32 or uint8, rows of ``columns`` values in all.
        addend: float32 of the shape of ``x``, added to it first.
        weight, bias: float32 ``[columns]``, of norms.
        kind: a key of `KINDS`.
        columns: of a row.
        eps: of norms.
        source: scale and zero point of ``x`` in uint8; empty for floats.
        floats: whether the float32 result is wanted; empty where it is not.
        out: scale, zero point, lowest and highest integer of the result in uint8; without them that
            is empty.

    Raises:
        ValueError: shapes or types do not fit each other.
    """
    _check(x, addend, (weight, bias), columns, source)
    x = x.contiguous()
    addend, weight, bias = (None if t is None else t.contiguous() for t in (addend, weight, bias))
    results = _results(x, floats, out)
    x_scale, x_zero_point = source or (0.0, 0)
    scale, *integers = out or (0.0, 0, 0, 0)
    call = NormalizationStruct(
        x.numel() // columns,
        columns,
        KINDS[kind],
        int(x_zero_point),
        x.data_ptr(),
        x_scale,
        eps,
        *(None if t is None else t.data_ptr() for t in (addend, weight, bias)),
        *(result.data_ptr() or None for result in results),
        scale,
        *map(int, integers),
    )
    loaded = library()
    if x.numel() and (
        loaded is None or loaded.octavo_normalize(ctypes.byref(call), torch.get_num_threads())
    ):
        raise MemoryError(f"no memory for a row of {columns} values")
    return results


def _check(
    x: Tensor,
    addend: Tensor | None,
    parameters: tuple[Tensor | None, ...],
    columns: int,
    source: list[float],
) -> None:
    dtype = torch.uint8 if source else torch.float32
    if x.dtype != dtype or x.device.type != "cpu" or columns < 1 or x.numel() % columns:
        raise ValueError(f"rows of {columns} in {x.dtype}{list(x.shape)} where {dtype} is expected")
    floats = [t for t in (addend, *parameters) if t is not None]
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in floats):
        raise ValueError(f"{', '.join(str(t.dtype) for t in floats)} where float32 is expected")
    if addend is not None and (addend.shape != x.shape or source):
        raise ValueError(f"{list(addend.shape)} is added to {x.dtype}{list(x.shape)}")
    if any(t.numel() != columns for t in parameters if t is not None):
        raise ValueError(f"a weight or bias that has not {columns} values")


def _results(x: Tensor, floats: bool, out: list[float]) -> tuple[Tensor, Tensor]:
    """Memory for the result in float32 and in uint8; none for what is not wanted."""
    whole, empty = x.shape, (0,)
    return (
        x.new_empty(whole if floats else empty, dtype=torch.float32),
        x.new_empty(whole if out else empty, dtype=torch.uint8),
    )


def _shapes(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, floats, out = others
    return _results(x, floats, out)


register(
    "normalize(Tensor x, Tensor? addend, Tensor? weight, Tensor? bias, str kind, int columns,"
    " float eps, float[] source, bool floats, float[] out) -> (Tensor, Tensor)",
    normalize,
    _shapes,
)
