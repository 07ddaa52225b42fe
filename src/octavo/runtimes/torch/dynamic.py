"""Linear layers that quantize what they read at each call, with the range that it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from octavo.graph.graph import Node, Ref
from octavo.quantization.fusions import ONEDNN
from octavo.runtimes.torch.chains import Call, Chain, Context
from octavo.runtimes.torch.integer_kernels import Integers
from octavo.runtimes.torch.kernel import Kernel, Reads
from octavo.runtimes.torch.onednn import (
    PackedConv,
    check_kernel,
    convolution,
    product_kernel,
)
from octavo.runtimes.torch.post_ops import post_op_of

# Around this number float32 has no fractions: adding it rounds, half to even, and leaves the
# integer in the lowest bits. All values are in range, up to half a step, so that the lowest byte is
# all of it, if values are made a little smaller: half a step then rounds inwards.
_NO_FRACTIONS = 1.5 * 2.0**23
_A_LITTLE_LESS = 1 - 1e-6


def quantize_dynamic(node: Node) -> Callable[[Tensor], tuple[Tensor, float, int]]:
    """Float tensor to uint8, with the scale and zero point that were found."""
    _, low, high, symmetric, _ = node.args
    shift = max(0, -low)
    steps = float(high - low)
    smallest = torch.finfo(torch.float32).tiny ** 0.5

    def kernel(x: Tensor) -> tuple[Tensor, float, int]:
        lowest, highest = (bound.item() for bound in torch.aminmax(x)) if x.numel() else (0.0, 0.0)
        lowest, highest = min(lowest, 0.0), max(highest, 0.0)
        if symmetric:
            scale, zero_point = max(max(-lowest, highest) / min(high, -low), smallest), 0
        else:
            scale = max((highest - lowest) / steps, smallest)
            zero_point = max(low, min(high, low - round(lowest / scale)))
        zero_point += shift
        moved = torch.add(torch.tensor(zero_point + _NO_FRACTIONS), x, alpha=_A_LITTLE_LESS / scale)
        return moved.view(torch.int32).to(torch.uint8), scale, zero_point

    return kernel


def linear(context: Context, chain: Chain) -> Call:
    """A linear layer on the integers that `quantize_dynamic` makes."""
    x, weight_arg, bias = (*chain.layer.args, None)[:3]
    parts, source = _source(context, x)
    weight, scale = context.weight(weight_arg)
    check_kernel(source, weight)
    name, product = product_kernel(context, weight, scale, chain)

    def kernel(quantized: tuple[Tensor, float, int], bias: Tensor | None) -> Tensor:
        return product(*quantized, bias)

    return Call(f"{name}, dynamic", kernel, (parts, bias))


def quantize_by_tensors(node: Node) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Float tensor to uint8; scale and zero point, of each row or of all, are float32 tensors."""
    _, low, high, symmetric, per_token = node.args
    shift = max(0, -low)
    axes = (-1,) if per_token else ()  # none are all
    # Tensors of one value each, since torch makes new ones of Python's numbers at each call.
    zero, smallest = torch.tensor(0.0), torch.tensor(torch.finfo(torch.float32).tiny ** 0.5)
    lowest, no_fractions = torch.tensor(float(low + shift)), torch.tensor(_NO_FRACTIONS)
    steps = min(high, -low) if symmetric else high - low
    middle, a_little_less = torch.tensor(float(shift)), torch.tensor(_A_LITTLE_LESS)

    def kernel(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Not aminmax, which is slower along an axis.
        below = torch.minimum(x.amin(axes, keepdim=per_token), zero)
        above = torch.maximum(x.amax(axes, keepdim=per_token), zero)
        width = torch.maximum(above, -below) if symmetric else above.sub_(below)
        scale = torch.add(smallest, width, alpha=1.0 / steps)
        inverse = scale.reciprocal()
        zero_point = middle if symmetric else torch.sub(lowest, below.mul_(inverse).round_())
        moved = x.mul(inverse.mul_(a_little_less)).add_(torch.add(zero_point, no_fractions))
        return moved.view(torch.int32).to(torch.uint8), scale, zero_point

    return kernel


def linear_by_tensors(context: Context, chain: Chain) -> Call:
    """A linear layer on the integers that `quantize_by_tensors` makes.

    The kernel is told one scale and no zero point: the true ones are applied to its sums.
    """
    x, weight_arg, bias = (*chain.layer.args, None)[:3]
    parts, source = _source(context, x)
    weight, scale = context.weight(weight_arg)
    check_kernel(source, weight)
    name, product = product_kernel(context, weight, scale, chain)
    sums = weight.sum(1, dtype=torch.float32) * scale

    def kernel(quantized: tuple[Tensor, Tensor, Tensor], bias: Tensor | None) -> Tensor:
        q, x_scale, zero_point = quantized
        result = product(q, 1.0, 0, None).addcmul_(zero_point, sums, value=-1)
        return result.mul_(x_scale) if bias is None else torch.addcmul(bias, result, x_scale)

    how = "per token" if context.dynamic[x.name][1].args[4] else "dynamic"
    return Call(f"{name}, {how}", kernel, (parts, bias))


def conv(context: Context, chain: Chain) -> Call:
    """A convolution on the integers that `quantize_dynamic` makes.

    Packed for an input without a zero point and for one with, since oneDNN packs a weight anew at
    each call that is of the other kind.
    """
    parts, source = _source(context, chain.layer.args[0])
    both = [
        PackedConv.of(context, chain.layer, replace(source, zero_point=zero_point))
        for zero_point in (0, 1)
    ]
    op = chain.layer.short_op
    post_op, out = post_op_of(chain, op)
    product = post_op.after(both[0].reading(convolution(context, op)))

    def kernel(quantized: tuple[Tensor, float, int], bias: Tensor | None) -> Tensor:
        packed = both[quantized[2] != 0]
        weights, geometry = packed.weights, packed.geometry
        return product(*quantized, *weights, bias, *geometry, *out, *post_op.native)

    return Call(f"onednn.q{op}, dynamic", kernel, (parts, both[0].bias))


def _source(context: Context, x: Ref) -> tuple[Ref, Integers]:
    """The integers behind a rounded input; their scale is found at run time."""
    parts, rounding = context.dynamic[x.name]
    _, low, high, *_ = rounding.args
    shift = max(0, -low)
    return Ref(parts), Integers(1.0, shift, low + shift, high + shift, torch.uint8)


KERNELS = (
    *(Kernel((op,), conv, Reads.OWN_RANGE, ONEDNN[op]) for op in ("conv1d", "conv2d", "conv3d")),
    Kernel(("linear",), linear, Reads.OWN_RANGE, ONEDNN["linear"]),
    Kernel(("linear",), linear_by_tensors, Reads.TENSOR_SCALES, fusion=None),
)
