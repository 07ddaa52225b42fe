"""Layers without weights on integers: arithmetic, pooling, and operators that move values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from octavo import operators
from octavo.graph import Node, Ref
from octavo.runtimes import integer_kernels as kernels
from octavo.runtimes.chains import Call, Chain, Context, Unsupported
from octavo.runtimes.integer_kernels import Integers
from octavo.runtimes.onednn import hardtanh_bounds, pair


def elementwise(
    make: Callable[[Integers, Integers, Integers], Callable[..., Tensor]],
) -> Callable[[Context, Chain], Call]:
    """Addition or multiplication of two quantized tensors."""

    def lower(context: Context, chain: Chain) -> Call:
        (a, one), (b, other) = (context.source(arg) for arg in chain.layer.args[:2])
        out = _clipped(_quantized_out(chain), chain.activation)
        return Call(f"octavo.{chain.layer.short_op}", make(one, other, out), (a, b))

    return lower


def activation(context: Context, chain: Chain) -> Call:
    """A relu or hardtanh that stands alone."""
    x, source = context.source(chain.layer.args[0])
    out = _clipped(_quantized_out(chain), chain.layer)
    return Call(f"octavo.{chain.layer.short_op}", kernels.rescale(source, out), (x,))


def mean(context: Context, chain: Chain) -> Call:
    """A mean over given dimensions."""
    x, source = context.source(chain.layer.args[0])
    out = _quantized_out(chain)
    if chain.layer.op != "aten.mean.dim" or chain.layer.kwargs:
        raise Unsupported("it is a mean over all values, or of another dtype")
    dims, keepdim = (*chain.layer.args[1:], False)[:2]
    return Call("octavo.mean", kernels.mean(list(dims), keepdim, source, out), (x,))


def average_pool(context: Context, chain: Chain) -> Call:
    """``avg_pool2d`` and ``adaptive_avg_pool2d``."""
    x, source = context.source(chain.layer.args[0])
    out, arguments = _quantized_out(chain), chain.layer.args[1:]
    if chain.layer.short_op == "adaptive_avg_pool2d" and pair(arguments[0]) == [1, 1]:
        return Call("octavo.mean", kernels.mean([2, 3], True, source, out), (x,))
    operator = operators.resolve(chain.layer.op)

    def pool(values: Tensor) -> Tensor:
        pooled: Tensor = operator(values, *arguments)
        return pooled

    kernel = kernels.through_float(pool, source, out)
    return Call(f"octavo.{chain.layer.short_op}", kernel, (x,))


def max_pool2d(context: Context, chain: Chain) -> Call:
    """The maximum of integers is the integer of the maximum."""
    x = _unscaled_input(context, chain)
    given = chain.layer.args[1:]
    size, stride, padding, dilation, ceil = given + (None, [], [0, 0], [1, 1], False)[len(given) :]
    size, padding, dilation = pair(size), pair(padding), pair(dilation)
    stride = pair(stride) if stride else size
    separable = dilation == [1, 1] and not ceil
    if separable and all(2 * p < k for p, k in zip(padding, size, strict=True)):
        function = kernels.max_pool2d(size, stride, padding)
    else:
        function = kernels.max_pool2d_by_float(size, stride, padding, dilation, ceil)
    return Call("octavo.max_pool2d", function, (x,))


def move(context: Context, chain: Chain) -> Call:
    """An operator that only moves or picks values, on the integers as they are."""
    x = _unscaled_input(context, chain)
    function = operators.resolve(chain.layer.op)
    if chain.layer.kwargs:
        raise Unsupported("it has keyword arguments")
    name = f"torch.{chain.layer.short_op}"
    return Call(name, function, (x, *chain.layer.args[1:]), moves=x.name)


def cat(context: Context, chain: Chain) -> Call:
    """Concatenation of tensors of one scale."""
    tensors, *dim = chain.layer.args
    sources = [context.source(arg) for arg in tensors]
    if any(integers != chain.out for _, integers in sources):
        raise Unsupported("its inputs and its result have scales of their own")
    refs: list[Any] = [ref for ref, _ in sources]
    return Call("torch.cat", operators.resolve(chain.layer.op), (refs, *dim))


def _unscaled_input(context: Context, chain: Chain) -> Ref:
    """The only input, where the result has its very integers."""
    x, source = context.source(chain.layer.args[0])
    if _quantized_out(chain) != source:
        raise Unsupported("its result has a scale of its own")
    return x


def _quantized_out(chain: Chain) -> Integers:
    if chain.out is None:
        raise Unsupported("its result is float")
    return chain.out


def _clipped(out: Integers, activation: Node | None) -> Integers:
    """The integers that a relu or hardtanh (or nothing) leaves."""
    if activation is None:
        return out
    if activation.short_op == "relu":
        return out.clipped(0.0, float("inf"))
    return out.clipped(*hardtanh_bounds(activation))
