"""Uint8 images straight to the integers of the first layer: normalization and quantization are one
product and one sum for each pixel.

They are computed a block at a time, so that the floats stay in the cache: those of a whole batch
take longer to allocate than to compute.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.graph.program import Step
from octavo.runtimes.integers import Integers
from octavo.runtimes.torch.chains import Context, integers_of

_BLOCK = 2**18  # values whose floats stay in the cache of two cores
# What is before the quantization, from the last to the first.
_NORMALIZATION = ("aten.add.Tensor", "aten.mul.Tensor", "aten.to.dtype")


def step_from_pixels(context: Context, quantize: Node) -> Step | None:
    """A quantize node as a step that takes pixels; ``None`` if it does not read normalized ones:
    ``x.to(float32) * factor + offset`` of a uint8 image, with a number for each channel.
    """
    chain, out = [quantize], integers_of(quantize)
    for op in _NORMALIZATION:
        source = chain[-1].args[0]
        node = context.graph.producer(source)
        if node is None or node.op != op or node.kwargs:
            return None
        chain.append(node)
    _, add, mul, to = chain
    pixels = context.graph.metas.get(to.args[0].name)
    if pixels is None or pixels.dtype != "uint8" or out.dtype != torch.uint8:
        return None
    factor, offset = _constant(context, mul), _constant(context, add)
    if factor is None or offset is None or to.args[1:] != (torch.float32,):
        return None
    per_channel = (pixels.shape[1], 1, 1)
    if len(pixels.shape) != 4 or not factor.shape == offset.shape == per_channel:
        return None
    return Step(quantize.name, quantize_pixels(factor, offset, out), to.args[:1])


def quantize_pixels(factor: Tensor, offset: Tensor, out: Integers) -> Callable[[Tensor], Tensor]:
    """Uint8 images ``[N, channels, height, width]`` to uint8 integers of ``x * factor + offset``,
    in channels-last order.
    """
    slope, start, rounded = _arithmetic(factor.flatten(), offset.flatten(), out)

    def integers(x: Tensor, slopes: Tensor, starts: Tensor) -> Tensor:
        stored = torch.empty_like(x)
        size = max(1, _BLOCK // max(1, x[:1].numel()))
        floats = torch.empty(min(size, len(x)), *x.shape[1:])
        for block, result in zip(x.split(size), stored.split(size), strict=True):
            values = floats[: len(block)].copy_(block).mul_(slopes).add_(starts)
            result.copy_(rounded(values).to(torch.int16))  # by way of int16, see integer_kernels
        return stored

    def kernel(x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        images = x.permute(0, 2, 3, 1)
        if images.is_contiguous():
            rows = images.view(count * height, width * channels)
            stored = integers(rows, slope.repeat(width), start.repeat(width))
            return stored.view(images.shape).permute(0, 3, 1, 2)
        planes = x.contiguous().view(count, channels, height * width)
        stored = integers(planes, slope[:, None], start[:, None]).view(x.shape)
        return _channels_last(stored)

    return kernel


def _arithmetic(
    factor: Tensor, offset: Tensor, out: Integers
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """A slope and a start for each channel, and what makes integers of ``x * slope + start``.

    The quantization is folded into slope and start where all 256 values come out as the oracle's.
    They do not where many are halves of steps: of images from -1 to 1 all are.
    """

    def divided(x: Tensor) -> Tensor:
        return x.div_(out.scale).round_().add_(out.zero_point).clamp_(out.low, out.high)

    def clipped(x: Tensor) -> Tensor:
        return x.clamp_(out.low, out.high + 0.5)

    slope = factor.double() / out.scale
    # A half more, so that the cast to integers, which cuts the fraction off, rounds to the nearest.
    start = offset.double() / out.scale + out.zero_point + 0.5
    ends = torch.stack([start, start + 255 * slope])
    clips = bool(ends.min() < out.low or ends.max() >= out.high + 1)
    slope, start = slope.float(), start.float()
    pixels = torch.arange(256.0)[:, None]
    wanted = divided(pixels * factor + offset)
    folded = clipped(pixels * slope + start).trunc()
    if not torch.equal(folded, wanted):
        return factor, offset, divided
    return slope, start, clipped if clips else lambda x: x


def _channels_last(x: Tensor) -> Tensor:
    if x.shape[1] <= 4:  # for few channels this is the faster way to the same order
        return torch.stack(x.unbind(1), -1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def _constant(context: Context, node: Node) -> Tensor | None:
    other = arguments(node)["other"]
    return context.graph.constant(other)
