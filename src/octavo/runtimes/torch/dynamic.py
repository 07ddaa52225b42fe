"""Linear layers that quantize what they read at each call, with the range that it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Node, Ref
from octavo.graph.operators import arguments
from octavo.numerics.native import library
from octavo.quantization.fusions import ONEDNN
from octavo.runtimes.integers import Integers
from octavo.runtimes.native.dynamic import DynamicLinear
from octavo.runtimes.native.eight_bits import multiply_eight_bits
from octavo.runtimes.native.matrix import MOST_COLUMNS, How, Matrix, Reading, unpack
from octavo.runtimes.native.program import Program
from octavo.runtimes.torch.chains import Call, Chain, Context, Unsupported
from octavo.runtimes.torch.kernel import Kernel, Reads
from octavo.runtimes.torch.native_floats import obstacle
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

# Integers; the width of their range, and their zero point if it varies, of each row or of all.
OfTensors = tuple[Tensor, Tensor, Tensor | None]

# Operators whose result has no negative values, and those that keep it so.
_NEVER_NEGATIVE = frozenset({"relu", "sigmoid", "hardsigmoid", "softmax"})
_KEEP_SIGNS = frozenset(
    """
    reshape flatten squeeze unsqueeze transpose permute mean dropout
    avg_pool2d adaptive_avg_pool2d max_pool2d
    """.split()
)


def fits_a_byte(node: Node) -> bool:
    """Whether a node rounds to integers that kernels read, which are stored as uint8 from 0 on."""
    given = arguments(node)
    stored: int = given["qmax"] - min(given["qmin"], 0)
    return stored < 256


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
    x, weight_arg, bias = arguments(chain.layer).values()
    parts, source = _source(context, x)
    weight, scale = context.weight(weight_arg)
    check_kernel(source, weight)
    name, product = product_kernel(context, weight, scale, chain)

    def kernel(quantized: tuple[Tensor, float, int], bias: Tensor | None) -> Tensor:
        return product(*quantized, bias)

    return Call(f"{name}, dynamic", kernel, (parts, bias))


def quantize_rows(
    context: Context, node: Node
) -> Callable[[Tensor], OfTensors | tuple[Tensor, float, int]]:
    """Float rows to uint8, each by its own range; that of a single row is told in numbers."""
    one, several = quantize_dynamic(node), quantize_by_tensors(context, node)

    def kernel(x: Tensor) -> OfTensors | tuple[Tensor, float, int]:
        if x.numel() != x.shape[-1]:
            return several(x)
        try:
            return one(x)
        except ValueError:  # a range of NaN, which is not one of numbers; tensors carry it on
            return several(x)

    return kernel


def quantize_by_tensors(context: Context, node: Node) -> Callable[[Tensor], OfTensors]:
    """Float tensor to uint8, by a range of each row or of all.

    Each operator on a number a row takes as long as one on some thousand values: there are few.
    """
    x_arg, low, _, symmetric, per_token = node.args
    axes = (-1,) if per_token else ()  # none are all
    fixed, not_negative = _fixed_zero_point(context, node), _is_never_negative(context, x_arg)
    # Tensors, since torch makes new ones of Python's numbers at each call.
    smallest = torch.tensor(torch.finfo(torch.float32).tiny ** 0.5 * _steps(node))
    steps = torch.tensor(_A_LITTLE_LESS * _steps(node))
    # As long as a row where that is known: vector instructions take but one number for all.
    no_fractions = torch.full(_columns(context, x_arg), _NO_FRACTIONS + (fixed or 0))

    def kernel(x: Tensor) -> OfTensors:
        # Not aminmax, which is slower along an axis.
        width = torch.maximum(x.amax(axes, per_token), smallest)
        if not not_negative:
            below = x.amin(axes, per_token).neg_()
            width = torch.maximum(width, below) if symmetric else width.add_(below.relu_())
        inverse = steps / width
        q, zero_point = torch.addcmul(no_fractions, x, inverse), None
        if fixed is None:
            zero_point = below.mul_(inverse).round_()
            q.add_(zero_point.add_(low) if low > 0 else zero_point)
        return q.view(torch.int32).byte(), width, zero_point

    return kernel


def linear_by_tensors(context: Context, chain: Chain) -> Call:
    """A linear layer on the integers of `quantize_by_tensors` or `quantize_rows`.

    The kernel is told what is the same for all rows: the rest is applied to its sums.
    """
    x, weight_arg, bias = arguments(chain.layer).values()
    parts, source = _source(context, x)
    weight, scale = context.weight(weight_arg)
    check_kernel(source, weight)
    rounding = context.dynamic[x.name][1]
    fixed, steps = _fixed_zero_point(context, rounding), _steps(rounding)
    scale = scale / steps
    name, product = product_kernel(context, weight, scale, chain)
    minus_sums = weight.sum(1, dtype=torch.float32) * -scale

    def kernel(quantized: tuple[Tensor, Any, Any], bias: Tensor | None) -> Tensor:
        q, width, zero_point = quantized
        if isinstance(width, float):
            return product(q, width * steps, zero_point, bias)
        result = product(q, 1.0, fixed or 0, None)
        if zero_point is not None:
            result.addcmul_(zero_point, minus_sums)
        if bias is None:
            return result.mul_(width)
        return torch.addcmul(bias, result, width, out=result)

    how = "per token" if arguments(rounding)["per_token"] else "dynamic"
    return Call(f"{name}, {how}", kernel, (parts, bias))


def own_linear(context: Context, chain: Chain) -> Call:
    """A linear layer that rounds the floats itself, by Octavo's own kernel."""
    x, weight_arg, bias_arg = arguments(chain.layer).values()
    if not _own_is_quicker(context, chain):
        raise Unsupported("torch's kernel is quicker")
    given = arguments(context.dynamic[x.name][1])
    weight, scale = context.weight(weight_arg)
    bias = context.graph.constant(bias_arg)
    meta = context.graph.metas[given["x"].name]
    if bias_arg is not None and bias is None:
        raise Unsupported("its bias is computed")
    if meta is None or meta.dtype != "float32" or (bias is not None and bias.dtype != scale.dtype):
        raise Unsupported("it does not compute in float32")
    rows, columns = weight.shape
    if columns > MOST_COLUMNS:
        raise Unsupported(f"its weight has more than {MOST_COLUMNS} columns")
    matrix = Matrix.of(weight, scale, bias)
    context.hold(weight_arg, partial(unpack, matrix.weights, rows, columns))
    rounding = (given["qmin"], given["qmax"], given["symmetric"])
    if given["per_token"] and not obstacle(context):
        reading = Reading(How.ROW_RANGE, *rounding)
        program = Program.of(DynamicLinear(matrix, rows, columns, reading), 1)
        return Call("native.linear, per token", program, (given["x"],))
    how = How.ROW_RANGE if given["per_token"] else How.TENSOR_RANGE
    packed, scales, sums, biases = matrix.tensors

    def kernel(x: Tensor) -> Tensor:
        flat = x.reshape(-1, columns)
        result = multiply_eight_bits(flat, packed, scales, sums, biases, rows, how, *rounding)
        return result.reshape(*x.shape[:-1], rows)

    words = "per token" if given["per_token"] else "dynamic"
    return Call(f"octavo.linear, {words}", kernel, (given["x"],))


def _own_is_quicker(context: Context, chain: Chain) -> bool:
    """Whether Octavo's kernel is: with VNNI, where nothing stands behind the layer that torch's
    kernel would take in. Measured by ``benchmarks.native``.
    """
    return (
        context.caller == "python"
        and library.instruction_set() in ("avx512_vnni", "amx")
        and chain.activation is None
        and chain.quantize is None
    )


def _steps(rounding: Node) -> int:
    """Between how many integers the range, or half of a symmetric one, is divided."""
    _, low, high, symmetric, _ = rounding.args
    steps: int = min(high, -low) if symmetric else high - low
    return steps


def _fixed_zero_point(context: Context, rounding: Node) -> int | None:
    """The zero point of the stored integers, where it does not depend on the values."""
    x, low, _, symmetric, _ = rounding.args
    fixed: int = max(0, -low if symmetric else low)
    return fixed if symmetric or _is_never_negative(context, x) else None


def _is_never_negative(context: Context, x: Ref) -> bool:
    node = context.graph.producer(x)
    while node is not None and node.short_op in _KEEP_SIGNS:
        node = context.graph.producer(node.args[0])
    return node is not None and node.short_op in _NEVER_NEGATIVE


def _columns(context: Context, x: Ref) -> tuple[int, ...]:
    """The length of a row, or nothing where it is not known."""
    meta = context.graph.metas[x.name]
    last = None if meta is None or not meta.shape else meta.shape[-1]
    return () if last is None else (last,)


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
    Kernel(("linear",), own_linear, Reads.OWN_RANGE, ONEDNN["linear"]),
    Kernel(("linear",), own_linear, Reads.TENSOR_SCALES, fusion=None),
)
