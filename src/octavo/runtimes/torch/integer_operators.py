"""Layers without weights on integers: arithmetic, pooling, and operators that move values.

Tested in tests/runtimes/torch/test_int8.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from octavo.graph import operators
from octavo.graph.graph import Node, Ref, refs_in
from octavo.graph.operators import arguments
from octavo.quantization.fusions import CLIPS, Fusion
from octavo.runtimes.integers import Integers
from octavo.runtimes.torch import integer_kernels as kernels
from octavo.runtimes.torch.chains import Call, Chain, Context, Unsupported
from octavo.runtimes.torch.kernel import Kernel
from octavo.runtimes.torch.onednn import sized
from octavo.runtimes.torch.post_ops import clip_bounds


def elementwise(
    make: Callable[[Integers, Integers, Integers], Callable[..., Tensor]],
) -> Callable[[Context, Chain], Call]:
    """Addition or multiplication of two quantized tensors."""

    def lower(context: Context, chain: Chain) -> Call:
        (a, one), (b, other) = (context.source(arg) for arg in chain.layer.args[:2])
        out = _clipped(_quantized_out(chain), chain.activation)
        if chain.layer.kwargs:
            raise Unsupported("it has keyword arguments")
        return Call(f"octavo.{chain.layer.short_op}", make(one, other, out), (a, b))

    return lower


def addition(context: Context, chain: Chain) -> Call:
    """Addition of two quantized tensors, or of one to the float sums of a layer."""
    args = chain.layer.args[:2]
    floats = [arg for arg in args if isinstance(arg, Ref) and arg.name not in context.integers]
    if len(floats) != 1 or chain.layer.kwargs or not _is_float32(context, floats[0]):
        return elementwise(kernels.add)(context, chain)
    b, other = context.source(next(arg for arg in args if arg != floats[0]))
    out = _clipped(_quantized_out(chain), chain.activation)
    return Call("octavo.add", kernels.add_to_float(other, out), (floats[0], b))


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
    given = arguments(chain.layer)
    kernel = kernels.mean(list(given["dim"]), given["keepdim"], source, out)
    return Call("octavo.mean", kernel, (x,))


def average(context: Context, chain: Chain) -> Call:
    """An operator that makes weighted means of its input: average pooling, interpolation."""
    x, source = context.source(chain.layer.args[0])
    out, positional = _quantized_out(chain), chain.layer.args[1:]
    if chain.layer.short_op == "adaptive_avg_pool2d" and sized(positional[0], 2) == [1, 1]:
        return Call("octavo.mean", kernels.mean([2, 3], True, source, out), (x,))
    operator, keywords = operators.resolve(chain.layer.op), dict(chain.layer.kwargs)
    if any(True for _ in refs_in((positional, keywords))):
        raise Unsupported("its sizes are computed")

    def averaged(values: Tensor) -> Tensor:
        result: Tensor = operator(values, *positional, **keywords)
        return result

    kernel = kernels.through_float(averaged, source, out)
    return Call(f"octavo.{chain.layer.short_op}", kernel, (x,))


def pad(context: Context, chain: Chain) -> Call:
    """Zeros around a tensor are zero points around its integers."""
    x, source = context.source(chain.layer.args[0])
    if _quantized_out(chain) != source:
        raise Unsupported("its result has a scale of its own")
    given = arguments(chain.layer)
    mode = given.get("mode", "constant")
    if mode != "constant":
        raise Unsupported(f"torch has no int8 kernel for padding of mode {mode!r}")
    function = operators.resolve("aten.constant_pad_nd.default")
    return Call("torch.constant_pad_nd", function, (x, given["pad"], source.zero_point))


def max_pool2d(context: Context, chain: Chain) -> Call:
    """The maximum of integers is the integer of the maximum."""
    x = _unscaled_input(context, chain)
    _, size, stride, padding, dilation, ceil = arguments(chain.layer).values()
    size, padding, dilation = sized(size, 2), sized(padding, 2), sized(dilation, 2)
    stride = sized(stride, 2) if stride else size
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
    """Concatenation or stacking of tensors of one scale."""
    tensors, *dim = chain.layer.args
    sources = [context.source(arg) for arg in tensors]
    if any(integers != chain.out for _, integers in sources):
        raise Unsupported("its inputs and its result have scales of their own")
    refs: list[Any] = [ref for ref, _ in sources]
    return Call(f"torch.{chain.layer.short_op}", operators.resolve(chain.layer.op), (refs, *dim))


def _unscaled_input(context: Context, chain: Chain) -> Ref:
    """The only input, where the result has its very integers."""
    x, source = context.source(chain.layer.args[0])
    if _quantized_out(chain) != source:
        raise Unsupported("its result has a scale of its own")
    return x


def _is_float32(context: Context, value: Ref) -> bool:
    meta = context.graph.metas.get(value.name)
    return meta is not None and meta.dtype == "float32"


def _quantized_out(chain: Chain) -> Integers:
    if chain.out is None:
        raise Unsupported("its result is float")
    return chain.out


def _clipped(out: Integers, activation: Node | None) -> Integers:
    """The integers that a relu or hardtanh (or nothing) leaves."""
    return out if activation is None else out.clipped(*clip_bounds(activation))


_MOVES = """
    reshape flatten unflatten squeeze unsqueeze transpose permute t movedim swapaxes expand repeat
    flip roll narrow slice select getitem pixel_shuffle pixel_unshuffle channel_shuffle
    upsample_nearest1d upsample_nearest2d upsample_nearest3d amax
""".split()
_AVERAGES = """
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
""".split()

KERNELS = (
    Kernel(("add",), addition, fusion=Fusion(CLIPS)),
    Kernel(("sub",), elementwise(kernels.subtract), fusion=Fusion(CLIPS)),
    Kernel(("mul",), elementwise(kernels.multiply), fusion=Fusion(CLIPS)),
    Kernel(("relu", "hardtanh"), activation),
    Kernel(("mean",), mean),
    Kernel(tuple(_AVERAGES), average),
    Kernel(("max_pool2d",), max_pool2d),
    Kernel(("cat", "stack"), cat),
    Kernel(("pad", "constant_pad_nd"), pad),
    Kernel(tuple(_MOVES), move),
)
