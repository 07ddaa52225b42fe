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

from typing import Any

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
    return affine.quantize(x, *_along(axis, x, scale, zero_point), qmin, qmax).to(dtype)


def dequantize_channels(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """Integers back to float32, one scale for each index of ``axis``."""
    return affine.dequantize(q, *_along(axis, q, scale, zero_point))


def _along(axis: int, x: Tensor, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point shaped so that they broadcast along ``axis``."""
    for values, dtype in ((scale, torch.float32), (zero_point, torch.int32)):
        if values.shape != (x.shape[axis],) or values.dtype != dtype:
            raise ValueError(
                f"{values.dtype}{list(values.shape)} for axis {axis} of a tensor of shape "
                f"{list(x.shape)}; expected {dtype}[{x.shape[axis]}]"
            )
    dim = x.dim()
    return affine.broadcast(scale, dim, axis), affine.broadcast(zero_point, dim, axis)


# Shapes and dtypes alone, which is quicker than the arithmetic on tensors without values.
def _meta_quantize(x: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(x, dtype=arguments[-1])


def _meta_dequantize(q: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(q, dtype=torch.float32)


def _meta_quantize_channels(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, *arguments: Any
) -> Tensor:
    _along(axis, x, scale, zero_point)
    return _meta_quantize(x, *arguments)


def _meta_dequantize_channels(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    _along(axis, q, scale, zero_point)
    return _meta_dequantize(q)


_FUNCTIONS = (
    (quantize, _meta_quantize),
    (dequantize, _meta_dequantize),
    (quantize_channels, _meta_quantize_channels),
    (dequantize_channels, _meta_dequantize_channels),
)
for _schema, (_function, _meta_function) in zip(_SCHEMAS, _FUNCTIONS, strict=True):
    _LIBRARY.define(_schema)
    _LIBRARY.impl(_function.__name__, _function, "CompositeExplicitAutograd")
    _LIBRARY.impl(_function.__name__, _meta_function, "Meta")
