"""Affine quantization: the maths, on tensors, with no state.

A real number x and its integer q are tied by ``x = (q - zero_point) * scale`` (Jacob et al. 2018,
arXiv:1712.05877, eq. 1). The law that everything here keeps: inside the range
``|x - dequantize(quantize(x))| <= scale / 2``, zero is exact, quantize is monotone and idempotent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.errors import CalibrationError, PlanError
from octavo.numerics.scheme import Scheme


@dataclass(frozen=True)
class QParams:
    """Scale (float32) and zero point (int32) of a tensor, each of shape ``[]``, ``[channels]``, or
    ``[rows, groups]`` where a tensor ``[rows, columns]`` is quantized in groups.

    Attributes:
        scale: the real number that one step of the integers is.
        zero_point: the integer that means 0.
        scheme: of the integers.

    Example:
        >>> low, high = torch.tensor(0.0), torch.tensor(2.55)
        >>> qparams = qparams_of_range(low, high, Scheme("uint8"))
        >>> round(qparams.scale.item(), 4), qparams.zero_point.item()
        (0.01, 0)
    """

    scale: Tensor
    zero_point: Tensor
    scheme: Scheme

    def of_rank(self, dims: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point as `octavo.numerics.octavo_operators` takes them for a ``dims``-D
        tensor: of that rank, each size 1, the tensor's own or its number of groups.

        Args:
            dims: rank of the tensor, 1 or more where it has channels.
        """
        if self.scheme.group_size is not None:
            return self.scale, self.zero_point
        axis = self.scheme.channel_axis
        sizes = [1] * dims
        if axis is not None:
            sizes[axis] = -1
        return self.scale.reshape(sizes), self.zero_point.reshape(sizes)


def qparams_of_range(low: Tensor, high: Tensor, scheme: Scheme) -> QParams:
    """Scale and zero point that cover ``[low, high]``, extended to contain zero.

    Affine: ``scale = (high - low) / (qmax - qmin)``, ``zero_point = qmin - round(low / scale)``.
    Symmetric: ``scale = max(|low|, |high|) / ((qmax - qmin) / 2)``, zero point 0, or the middle
    for an unsigned type (Krishnamoorthi 2018, arXiv:1806.08342, sections 2.1 and 2.2).

    A power-of-two scale is the next one above (Jain et al. 2020, arXiv:1903.08066, section 3.2).

    Args:
        low: lowest value, float, of any shape: one scale for each.
        high: highest value, same shape.

    Raises:
        CalibrationError: a bound is not finite, or low is above high.

    Example:
        >>> p = qparams_of_range(torch.tensor(-1.0), torch.tensor(3.0), Scheme("uint8"))
        >>> round(p.scale.item(), 5), p.zero_point.item()
        (0.01569, 64)
    """
    if not bool(torch.isfinite(high.to(torch.float32) - low.to(torch.float32)).all()):
        raise CalibrationError(f"the range [{low}, {high}] is not finite")
    if bool((low > high).any()):
        raise CalibrationError(f"the range [{low}, {high}] is empty")
    return unchecked_qparams(low.to(torch.float32), high.to(torch.float32), scheme)


def unchecked_qparams(low: Tensor, high: Tensor, scheme: Scheme) -> QParams:
    """`qparams_of_range` of float32 bounds that are known to be finite and in order.

    Nothing is read off the tensors, so that a device need not be waited for.
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    steps = scheme.qmax - scheme.qmin
    if scheme.symmetric:
        scale = _scale(torch.maximum(-low, high) / (steps / 2), scheme)
        middle = 0 if scheme.integers.signed else (scheme.qmin + scheme.qmax + 1) // 2
        return QParams(scale, torch.full_like(scale, middle, dtype=torch.int32), scheme)
    scale = _scale((high - low) / steps, scheme)
    zero_point = scheme.qmin - torch.round(low / scale)
    return QParams(scale, zero_point.clamp(scheme.qmin, scheme.qmax).to(torch.int32), scheme)


def _scale(scale: Tensor, scheme: Scheme) -> Tensor:
    # Small enough for any real tensor; the product of two scales is still a normal number.
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny ** 0.5)
    return torch.exp2(torch.ceil(torch.log2(scale))) if scheme.power_of_two else scale


def blocks(x: Tensor, scheme: Scheme) -> tuple[Tensor, int | None]:
    """``x`` in a shape in which each scale belongs to one index of one axis, and that axis.

    ``[rows, columns]`` in groups becomes ``[rows * groups, group_size]``.

    Raises:
        PlanError: ``group_size`` does not divide the columns.
    """
    if scheme.group_size is None:
        return x, scheme.channel_axis
    if x.shape[-1] % scheme.group_size:
        raise PlanError(
            f"group_size {scheme.group_size} does not divide the {x.shape[-1]} input channels of a "
            f"tensor of shape {list(x.shape)}; take a divisor, or keep the layer in int8"
        )
    return x.reshape(-1, scheme.group_size), 0


def broadcast(values: Tensor, dim: int, axis: int | None) -> Tensor:
    """Shape ``[channels]`` values so that they broadcast along ``axis`` of a ``dim``-D tensor."""
    if axis is None or values.dim() == 0:
        return values
    shape = [1] * dim
    shape[axis] = -1
    return values.reshape(shape)


def quantize(
    x: Tensor, scale: Tensor | float, zero_point: Tensor | int, qmin: int, qmax: int
) -> Tensor:
    """``clamp(round(x / scale) + zero_point, qmin, qmax)``, still in floating point.

    Rounds half to even, as ONNX QuantizeLinear and the int8 kernels do.
    """
    # In place from here on: a pass over memory costs more than what it computes.
    return (x / scale).round_().add_(zero_point).clamp_(qmin, qmax)


def dequantize(q: Tensor, scale: Tensor | float, zero_point: Tensor | int) -> Tensor:
    """``(q - zero_point) * scale`` in float32."""
    return q.to(torch.float32, copy=True).sub_(zero_point).mul_(scale)


def quantized(x: Tensor, qparams: QParams) -> Tensor:
    """The nearest integers, in the type that they are stored in, of the shape of ``x``."""
    scheme = qparams.scheme
    rows, scale, zero_point = _beside_scales(x, qparams)
    integers = quantize(rows, scale, zero_point, scheme.qmin, scheme.qmax)
    return integers.to(scheme.integers.storage).reshape(x.shape)


def dequantized(q: Tensor, qparams: QParams) -> Tensor:
    """What integers stand for, float32 of the shape of ``q``."""
    return dequantize(*_beside_scales(q, qparams)).reshape(q.shape)


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """``x`` rounded to what its integers can hold, float32 of the same shape."""
    rows, scale, zero_point = _beside_scales(x, qparams)
    rounded = quantize(rows, scale, zero_point, qparams.scheme.qmin, qparams.scheme.qmax)
    return dequantize(rounded, scale, zero_point).reshape(x.shape)


def _beside_scales(x: Tensor, qparams: QParams) -> tuple[Tensor, Tensor, Tensor]:
    """``x``, scale and zero point, in shapes that broadcast; ``x`` of groups is in their rows."""
    rows, axis = blocks(x, qparams.scheme)
    scale, zero_point = (
        broadcast(values.to(x.device).flatten() if values.dim() else values, rows.dim(), axis)
        for values in (qparams.scale, qparams.zero_point)
    )
    return rows, scale, zero_point
