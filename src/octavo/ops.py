"""The ``octavo::`` operators: quantize and dequantize as graph nodes.

They are the oracle: they run wherever torch does, and every runtime is tested against them.

- ``octavo::quantize(x, scale, zero_point, qmin, qmax, dtype)``: float to integers, one scale.
- ``octavo::dequantize(q, scale, zero_point)``: back to float32, one scale.
- ``octavo::quantize_channels(x, scale, zero_point, axis, qmin, qmax, dtype)``: scale float32
  ``[channels]`` and zero point int32 ``[channels]``.
- ``octavo::dequantize_channels(q, scale, zero_point, axis)``.

The range is an argument of its own, since seven bits may be kept in a uint8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo import affine

_LIBRARY = torch.library.Library("octavo", "DEF")

_SCHEMAS = (
    "quantize(Tensor x, float scale, int zero_point, int qmin, int qmax, ScalarType dtype)"
    " -> Tensor",
    "dequantize(Tensor q, float scale, int zero_point) -> Tensor",
    "quantize_channels(Tensor x, Tensor scale, Tensor zero_point, int axis, int qmin, int qmax,"
    " ScalarType dtype) -> Tensor",
    "dequantize_channels(Tensor q, Tensor scale, Tensor zero_point, int axis) -> Tensor",
)


def quantize(
    x: Tensor, scale: float, zero_point: int, qmin: int, qmax: int, dtype: torch.dtype
) -> Tensor:
    """Float tensor to integers of ``dtype`` in ``[qmin, qmax]``, one scale for the tensor."""
    return affine.quantize(x, scale, zero_point, qmin, qmax).to(dtype)


def dequantize(q: Tensor, scale: float, zero_point: int) -> Tensor:
    """Integers back to float32, one scale for the tensor."""
    return affine.dequantize(q, scale, zero_point)


def quantize_channels(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    axis: int,
    qmin: int,
    qmax: int,
    dtype: torch.dtype,
) -> Tensor:
    """Float tensor to integers, one scale for each index of ``axis``."""
    scale = affine.broadcast(scale, x.dim(), axis)
    zero_point = affine.broadcast(zero_point, x.dim(), axis)
    return affine.quantize(x, scale, zero_point, qmin, qmax).to(dtype)


def dequantize_channels(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """Integers back to float32, one scale for each index of ``axis``."""
    scale = affine.broadcast(scale, q.dim(), axis)
    return affine.dequantize(q, scale, affine.broadcast(zero_point, q.dim(), axis))


for _schema, _function in zip(
    _SCHEMAS, (quantize, dequantize, quantize_channels, dequantize_channels), strict=True
):
    _LIBRARY.define(_schema)
    _LIBRARY.impl(_function.__name__, _function, "CompositeExplicitAutograd")
