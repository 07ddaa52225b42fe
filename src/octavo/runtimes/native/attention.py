"""Scaled dot product attention on uint8, in one kernel: ``octavo::attention_of_integers``.

It computes what ``octavo::attention`` does of dequantized tensors, and rounds the result if asked.

Tested in tests/runtimes/native/test_attention.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.numerics.native.library import library
from octavo.runtimes.native.operators import register

MOST_SOURCES = 2**16  # so that sums of integers fit into 32 bits
MOST_LEVELS = 255
NO_MASK, BOOLEAN, ADDED = range(3)


class HeadsStruct(ctypes.Structure):
    """``octavo_heads``."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch_stride", "head_stride", "row_stride")),
        ("scale", ctypes.c_float),
        ("zero_point", ctypes.c_int32),
    )


class AttentionStruct(ctypes.Structure):
    """``octavo_attention_call`` of native/octavo.h."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in ("batch", "heads", "shared_heads", "targets", "sources", "channels")
        ),
        ("value_channels", ctypes.c_int64),
        *((name, HeadsStruct) for name in ("q", "k", "v")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("levels", "causal", "mask_kind")),
        ("mask", ctypes.c_void_p),
        *((f"mask_{name}_stride", ctypes.c_int64) for name in ("batch", "head", "row")),
        ("out", ctypes.c_void_p),
        *((f"out_{name}_stride", ctypes.c_int64) for name in ("batch", "head", "row")),
        ("out_scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("out_zero_point", "out_low", "out_high")),
        ("workers", ctypes.c_int64),
        ("memory", ctypes.c_void_p),
    )


def attention_of_integers(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    gqa: bool,
    levels: int,
    scales: list[float],
    zero_points: list[int],
    out: list[float],
) -> Tensor:
    """What `octavo.numerics.octavo_operators.attention` makes of the tensors that are meant.

    Args:
        q: uint8 ``[..., heads, targets, channels]``; k and v ``[..., heads, sources, channels]``.
        mask, causal, scale, gqa, levels: as there; at most 255 levels.
        scales, zero_points: of q, k and v.
        out: scale, zero point, lowest and highest integer of a result in uint8; empty for a float32
            one. In memory its rows stand beside those of other heads.

    Raises:
        ValueError: shapes or types do not fit each other.
    """
    _check(q, k, v, levels)
    heads = q.shape[-3] if q.dim() > 2 else 1
    shared = _shared_heads(heads, k) if gqa else heads
    lead = torch.broadcast_shapes(*(t.shape[:-3] for t in (q, k, v)))
    wide = [
        _with_heads(t, lead, count)
        for t, count in zip((q, k, v), (heads, shared, shared), strict=True)
    ]
    result = _result_of(wide[0], v.shape[-1], bool(out))
    batch, _, targets, channels = wide[0].shape
    sources, value_channels = v.shape[-2:]
    kind, seen = _mask_of(mask, (*lead, heads, targets, sources))
    out_scale, *integers = out or (0.0, 0, 0, 0)
    call = AttentionStruct(
        batch,
        heads,
        shared,
        targets,
        sources,
        channels,
        value_channels,
        *(
            HeadsStruct(t.data_ptr(), *t.stride()[:3], own, zero_point)
            for t, own, zero_point in zip(wide, scales, zero_points, strict=True)
        ),
        channels**-0.5 if scale is None else scale,
        levels,
        causal,
        kind,
        None if seen is None else seen.data_ptr(),
        *((0, 0, 0) if seen is None else seen.stride()[:3]),
        result.data_ptr(),
        *result.stride()[:3],
        out_scale,
        *map(int, integers),
    )
    loaded = library()
    if result.numel() and (
        loaded is None or loaded.octavo_attention(ctypes.byref(call), torch.get_num_threads())
    ):
        raise MemoryError(f"attention found no memory for its {sources} keys and values")
    return result.reshape(*lead, heads, targets, value_channels)[(0,) * (3 - q.dim())]


def memory_of_floats(call: AttentionStruct) -> int:
    """Bytes of memory of a call of attention to floats."""
    loaded = library()
    assert loaded is not None, "whoever plans has asked for the library"
    return int(loaded.octavo_float_attention_memory(ctypes.byref(call)))


def memory_of(call: AttentionStruct) -> int:
    """Bytes that a call with so many workers needs for itself."""
    loaded = library()
    assert loaded is not None
    loaded.octavo_attention_memory.restype = ctypes.c_int64
    return int(loaded.octavo_attention_memory(ctypes.byref(call)))


def _check(q: Tensor, k: Tensor, v: Tensor, levels: int) -> None:
    if any(t.dtype != torch.uint8 or t.device.type != "cpu" or t.dim() < 2 for t in (q, k, v)):
        found = ", ".join(f"{t.dtype}{list(t.shape)}" for t in (q, k, v))
        raise ValueError(f"attention of {found} where uint8 of two or more sizes is expected")
    same = q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2]
    same &= 0 < q.shape[-1] <= MOST_SOURCES
    if not same or not 0 < k.shape[-2] <= MOST_SOURCES:
        sizes = ", ".join(str(list(t.shape)) for t in (q, k, v))
        raise ValueError(f"attention of {sizes}, which do not fit each other or the kernel")
    if not 0 < levels <= MOST_LEVELS:
        raise ValueError(f"probabilities in {levels} levels, of which a byte has {MOST_LEVELS}")


def _shared_heads(heads: int, k: Tensor) -> int:
    """How many heads of k there are for so many of q."""
    shared = k.shape[-3] if k.dim() > 2 else 1
    if shared < 1 or heads % shared:
        raise ValueError(f"{heads} heads of q cannot share {shared} heads of k and v")
    return shared


def _with_heads(t: Tensor, lead: Sequence[int], heads: int) -> Tensor:
    """``[batch, heads, rows, channels]`` whose channels stand side by side."""
    wide = t.expand(*lead, heads, *t.shape[-2:]).reshape(-1, heads, *t.shape[-2:])
    return wide if wide.stride(3) == 1 else wide.contiguous()


def _mask_of(mask: Tensor | None, shape: tuple[int, ...]) -> tuple[int, Tensor | None]:
    """What kind of mask it is, and it as ``[batch, heads, targets, sources]``."""
    if mask is None:
        return NO_MASK, None
    mask = mask if mask.dtype == torch.bool else mask.to(torch.float32)
    if mask.stride(-1) != 1 or mask.shape[-1] != shape[-1]:
        mask = mask.expand(*mask.shape[:-1], shape[-1]).contiguous()
    kind = BOOLEAN if mask.dtype == torch.bool else ADDED
    return kind, mask.expand(shape).reshape(-1, *shape[-3:])


def _result_of(q: Tensor, value_channels: int, integers: bool) -> Tensor:
    """Memory for ``[batch, heads, targets, value channels]``, each target with all its heads."""
    dtype = torch.uint8 if integers else torch.float32
    batch, heads, targets = q.shape[:3]
    return q.new_empty((batch, targets, heads, value_channels), dtype=dtype).transpose(1, 2)


def _shapes(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Tensor:
    *_, out = others
    lead = torch.broadcast_shapes(*(t.shape[:-3] for t in (q, k, v)))
    heads = q.shape[-3] if q.dim() > 2 else 1
    result = _result_of(_with_heads(q, lead, heads), v.shape[-1], bool(out))
    return result.reshape(*lead, heads, q.shape[-2], v.shape[-1])[(0,) * (3 - q.dim())]


register(
    "attention_of_integers(Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal, float? scale,"
    " bool gqa, int levels, float[] scales, int[] zero_points, float[] out) -> Tensor",
    attention_of_integers,
    _shapes,
)
