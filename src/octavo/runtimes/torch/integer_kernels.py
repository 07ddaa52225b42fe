"""Kernels on integer tensors, out of torch operators: what oneDNN does not offer, or slowly.

Each takes integers and gives integers; none materialises the dequantized tensor at full length
where it can be avoided. Scales and zero points are folded into few constants at load.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.runtimes.integers import Integers

_RARE = 2.0**16  # a share of one in so many


def meets_halves(step: Tensor, out: Integers) -> bool:
    """Whether whole numbers of these steps are often halves of steps of ``out``, where its zero
    point is odd: a kernel that adds it before it rounds then gives the other neighbour.

    Args:
        step: float ``[channels]``, what an integer of the sums is worth.
    """
    parts = step.double() * (_RARE / out.scale)
    return out.zero_point % 2 == 1 and bool((parts == parts.round()).double().mean() > 0.01)


def _store(steps: Tensor, out: Integers) -> Tensor:
    """Integers of a tensor of ``x / scale``, which may be overwritten.

    A half is rounded to even before the zero point is added, as the oracle and ONNX do: behind an
    odd zero point it would go the other way. By way of int16: torch casts float to int16 and int16
    to uint8 with vector instructions, float to uint8 without.
    """
    wide = torch.int16 if out.dtype == torch.uint8 else torch.int32
    steps.round_().clamp_(out.low - out.zero_point, out.high - out.zero_point)
    integers = steps.to(wide)
    return (integers.add_(out.zero_point) if out.zero_point else integers).to(out.dtype)


def _centred(q: Tensor, source: Integers) -> Tensor:
    """The integers less their zero point, as a new float tensor: zero stays exact, whatever factor
    comes behind it.
    """
    x = q.to(torch.float32)
    return x.sub_(source.zero_point) if source.zero_point else x


def quantize(out: Integers) -> Callable[[Tensor], Tensor]:
    """Float tensor to integers; images in channels-last order, which the kernels want."""
    scale = out.scale

    def kernel(x: Tensor) -> Tensor:
        # Divided, not multiplied by the inverse: of images from -1 to 1 every value is a tie.
        stored = _store(torch.div(x, scale), out)
        if x.dim() != 4 or stored.is_contiguous(memory_format=torch.channels_last):
            return stored
        if x.shape[1] <= 4:  # for few channels this is the faster way to the same order
            return torch.stack(stored.unbind(1), -1).permute(0, 3, 1, 2)
        return stored.contiguous(memory_format=torch.channels_last)

    return kernel


def dequantize(scale: float, zero_point: int) -> Callable[[Tensor], Tensor]:
    """Integers to float32."""

    def kernel(q: Tensor) -> Tensor:
        x = q.to(torch.float32)
        return x.sub_(zero_point).mul_(scale) if zero_point else x.mul_(scale)

    return kernel


def rescale(source: Integers, out: Integers) -> Callable[[Tensor], Tensor]:
    """Integers of one scale to integers of another; with a clipped ``out`` this is a relu."""
    factor = source.scale / out.scale

    def kernel(q: Tensor) -> Tensor:
        return _store(_centred(q, source).mul_(factor), out)

    return kernel


def add(one: Integers, other: Integers, out: Integers) -> Callable[[Tensor, Tensor], Tensor]:
    """Sum of two tensors with scales of their own."""
    first, second = one.scale / out.scale, other.scale / out.scale

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        if a.shape != b.shape:
            a, b = torch.broadcast_tensors(a, b)
        summand = _centred(b, other) if other.zero_point else b
        return _store(_centred(a, one).mul_(first).add_(summand, alpha=second), out)

    return kernel


def add_to_float(other: Integers, out: Integers) -> Callable[[Tensor, Tensor], Tensor]:
    """Sum of a float tensor and one of integers, as integers."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return _store(torch.add(a, _centred(b, other), alpha=other.scale).div_(out.scale), out)

    return kernel


def subtract(one: Integers, other: Integers, out: Integers) -> Callable[[Tensor, Tensor], Tensor]:
    """Difference of two tensors with scales of their own."""
    return add(one, replace(other, scale=-other.scale), out)


def multiply(one: Integers, other: Integers, out: Integers) -> Callable[[Tensor, Tensor], Tensor]:
    """Product of two tensors, either of which may be broadcast."""
    factor = one.scale * other.scale / out.scale

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        large, small = (_centred(b, other), _centred(a, one))
        if a.numel() >= b.numel():
            large, small = small, large
        small.mul_(factor)
        grows = torch.broadcast_shapes(large.shape, small.shape) != large.shape
        return _store(large.mul(small) if grows else large.mul_(small), out)

    return kernel


def mean(
    dims: list[int], keepdim: bool, source: Integers, out: Integers
) -> Callable[[Tensor], Tensor]:
    """Mean over dimensions."""
    factor = source.scale / out.scale

    def kernel(q: Tensor) -> Tensor:
        average = torch.mean(q, dims, keepdim, dtype=torch.float32)
        return _store(average.sub_(source.zero_point).mul_(factor), out)

    return kernel


def through_float(
    operator: Callable[[Tensor], Tensor], source: Integers, out: Integers
) -> Callable[[Tensor], Tensor]:
    """An operator that averages values (a pooling): on the integers, zero point taken off."""
    factor = source.scale / out.scale

    def kernel(q: Tensor) -> Tensor:
        return _store(operator(_centred(q, source)).mul_(factor), out)

    return kernel


def max_pool2d(
    kernel_size: list[int], stride: list[int], padding: list[int]
) -> Callable[[Tensor], Tensor]:
    """Maximum over windows, on integers of any type, channels-last kept.

    torch's own pooling does not take channels-last uint8. The maximum is separable: first along
    height, then along width, each as a few strided maxima.
    """
    plans = tuple(zip((2, 3), kernel_size, stride, padding, strict=True))

    def kernel(q: Tensor) -> Tensor:
        for dim, size, step, pad in plans:
            q = _max_along(q, dim, size, step, pad)
        return q

    return kernel


def _max_along(q: Tensor, dim: int, size: int, step: int, pad: int) -> Tensor:
    """Maximum over windows of one dimension; needs ``2 * pad < size``."""
    length = q.shape[dim]
    count = (length + 2 * pad - size) // step + 1
    parts = []
    for shift in range(-pad, size - pad):
        first = max(0, -(shift // step))  # the first output whose window holds this position
        last = min(count - 1, (length - 1 - shift) // step)
        if first <= last:
            part = q.narrow(dim, first * step + shift, (last - first) * step + 1)
            parts.append((first, part[:, :, ::step] if dim == 2 else part[:, :, :, ::step]))
    # Positions that all outputs have come first; those missing at a border join in place.
    parts.sort(key=lambda item: -item[1].shape[dim])
    (_, result), *rest = parts
    owned = False
    for first, part in rest:
        if part.shape[dim] == count:
            result = torch.maximum(result, part)
        else:
            result = result if owned else result.clone(memory_format=torch.preserve_format)
            view = result.narrow(dim, first, part.shape[dim])
            torch.maximum(view, part, out=view)
        owned = True
    return result if owned else result.clone(memory_format=torch.preserve_format)


def max_pool2d_by_float(
    kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil: bool
) -> Callable[[Tensor], Tensor]:
    """The rare settings: exact as well, since every such integer is a float."""

    def kernel(q: Tensor) -> Tensor:
        x = q.to(torch.float32)
        return F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil).to(q.dtype)

    return kernel
