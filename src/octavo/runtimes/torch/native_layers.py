"""Layers that Octavo's own kernels run in native programs, without Python between them.

Each is tried before torch's kernel for the same layer.

Tested in tests/runtimes/torch/test_native_layers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from octavo.graph import operators
from octavo.graph.graph import Node, Ref, refs_in
from octavo.graph.operators import arguments
from octavo.graph.qdq import weight_behind
from octavo.quantization.fusions import CLIPS, NATIVE, Fusion
from octavo.runtimes.integers import Integers
from octavo.runtimes.native import operations
from octavo.runtimes.native.attention import MOST_LEVELS
from octavo.runtimes.native.operations import Combination, Pooled
from octavo.runtimes.native.program import Program
from octavo.runtimes.native.rows import Attend, Gather
from octavo.runtimes.native.windows import Windows
from octavo.runtimes.torch import integer_kernels
from octavo.runtimes.torch.chains import (
    Call,
    Chain,
    Context,
    Unsupported,
    bytes_of,
    check_bytes,
    integers_of,
)
from octavo.runtimes.torch.kernel import Kernel, Reads
from octavo.runtimes.torch.native_convolutions import (
    Described,
    convolution,
    linear,
    transposed,
    volume,
)
from octavo.runtimes.torch.native_floats import (
    LOOKS,
    PADDINGS,
    item_of,
    look_of,
    norm_of,
    obstacle,
    padding_of,
    roll_of,
)
from octavo.runtimes.torch.native_runs import Either
from octavo.runtimes.torch.onednn import sized
from octavo.runtimes.torch.post_ops import clip_bounds

# They read values along the last axis.
_OF_ROWS = frozenset("linear attention matmul softmax layer_norm rms_norm".split())


def native(
    describe: Callable[[Context, Chain], Described],
) -> Callable[[Context, Chain], Call]:
    """A kernel's call out of a description: its name, what is done, and what it reads."""

    def call(context: Context, chain: Chain) -> Call:
        if obstacle(context):
            raise Unsupported(obstacle(context))
        name, operation, read = describe(context, chain)
        return Call(f"native.{name}", Program.of(operation, len(read)), read)

    return call


def quantize(context: Context, node: Node) -> Callable[[Tensor], Tensor]:
    """What rounds floats."""
    out, meta = integers_of(node), context.graph.meta(node.args[0].name)
    fits = meta is not None and meta.dtype == "float32" and len(meta.shape) <= 4
    if obstacle(context) or not fits or out.dtype != torch.uint8:
        return integer_kernels.quantize(out)
    users = context.graph.users
    readers = {reader.short_op for user in users[node.name] for reader in users[user.name]}
    return Program.of(operations.Quantize(out, rows=bool(readers) and readers <= _OF_ROWS), 1)


def dequantize(context: Context, node: Node) -> Callable[[Tensor], Tensor]:
    """What reads integers back as floats."""
    source = context.integers[node.name][1]
    if obstacle(context) or source.dtype != torch.uint8:
        return integer_kernels.dequantize(source.scale, source.zero_point)
    return Program.of(operations.Dequantize(source), 1)


def two(combination: Combination, sign: int = 1) -> Callable[[Context, Chain], Described]:
    """A sum or product of two quantized tensors."""

    def describe(context: Context, chain: Chain) -> Described:
        if chain.layer.kwargs:
            raise Unsupported("it has keyword arguments")
        (a, one), (b, other) = (bytes_of(context, arg) for arg in chain.layer.args[:2])
        _check_rank(context, chain.layer, 4)
        other = replace(other, scale=sign * other.scale)
        out = _clipped(chain)
        operation = operations.Binary(combination, one, other, out)
        return chain.layer.short_op, operation, (a, b)

    return describe


def activation(context: Context, chain: Chain) -> Described:
    """A function of one value: what it makes of all 256 integers stands in a table."""
    node = chain.layer
    x, source = bytes_of(context, node.args[0])
    out = _out(chain)
    if any(True for _ in refs_in((node.args[1:], node.kwargs))):
        raise Unsupported("its arguments are computed")
    floats = (torch.arange(256.0) - source.zero_point) * source.scale
    function = operators.resolve(node.op)
    results = function(floats, *node.args[1:], **node.kwargs)
    table = integer_kernels.quantize(out)(results)
    return node.short_op, operations.LookUp(table), (x,)


def mean(context: Context, chain: Chain) -> Described:
    """A mean over axes that are neighbours."""
    node = chain.layer
    if node.op != "aten.mean.dim" or node.kwargs:
        raise Unsupported("it is a mean over all values, or of another dtype")
    x, source = bytes_of(context, node.args[0])
    given = arguments(node)
    meta = context.graph.metas[node.args[0].name]
    rank = 0 if meta is None else len(meta.shape)
    dims = tuple(sorted(dim % rank for dim in given["dim"] or ())) if rank else ()
    if not dims or dims != tuple(range(dims[0], dims[-1] + 1)):
        raise Unsupported(f"it is a mean over the axes {list(dims)}")
    operation = operations.Mean(dims, given["keepdim"], source, _out(chain))
    return "mean", operation, (x,)


def average(context: Context, chain: Chain) -> Described:
    """Average pooling of images."""
    node = chain.layer
    x, source = bytes_of(context, node.args[0])
    given = arguments(node)
    if node.short_op == "adaptive_avg_pool2d":
        if list(refs_in(node.args[1:])) or sized(given["output_size"], 2) != [1, 1]:
            raise Unsupported("its windows differ in size")
        _check_rank(context, node, 4, least=4)
        return "mean", operations.Mean((2, 3), True, source, _out(chain)), (x,)
    _check_rank(context, node, 4, least=4)
    size = sized(given["kernel_size"], 2)
    windows = Windows(
        tuple(size),
        tuple(sized(given["stride"], 2) if given["stride"] else size),
        tuple(sized(given["padding"], 2)),
        ceil=given["ceil_mode"],
    )
    pooled = Pooled.MEAN_WITH_PADDING if given["count_include_pad"] else Pooled.MEAN
    divisor = given["divisor_override"] or 0
    operation = operations.Pool(pooled, windows, divisor, source, _out(chain))
    return node.short_op, operation, (x,)


def max_pool2d(context: Context, chain: Chain) -> Described:
    """The maximum of integers is the integer of the maximum."""
    x, source = _unscaled(context, chain)
    _check_rank(context, chain.layer, 4, least=4)
    _, size, stride, padding, dilation, ceil = arguments(chain.layer).values()
    size = tuple(sized(size, 2))
    windows = Windows(
        size,
        tuple(sized(stride, 2)) if stride else size,
        tuple(sized(padding, 2)),
        tuple(sized(dilation, 2)),
        ceil,
    )
    operation = operations.Pool(Pooled.LARGEST, windows, 0, source, source)
    return "max_pool2d", operation, (x,)


def look(context: Context, chain: Chain) -> Call:
    """An operator that only looks at values differently, or at one of their parts."""
    if obstacle(context):
        raise Unsupported(obstacle(context))
    node, (x, _) = chain.layer, _unscaled(context, chain)
    operation, numbers = item_of(context, node) if node.short_op == "getitem" else look_of(node)
    function = Either(operators.resolve(node.op), operation, (x.name, *numbers))
    return Call(f"native.{node.short_op}", function, (x, *node.args[1:]), moves=x.name)


def split(context: Context, node: Node, integers: str) -> Callable[..., Any]:
    """What takes integers apart."""
    plain = operators.resolve(node.op)
    try:
        operation, numbers = look_of(node)
    except Unsupported:
        return plain
    return plain if obstacle(context) else Either(plain, operation, (integers, *numbers))


def norm(context: Context, chain: Chain) -> Described:
    """A norm or softmax of integers."""
    x, source = bytes_of(context, chain.layer.args[0])
    if chain.out is not None:
        check_bytes("result", chain.out)
    operation = replace(norm_of(context, chain.layer), source=source, out=chain.out)
    return chain.layer.short_op, operation, (x,)


def attention(context: Context, chain: Chain) -> Described:
    """Attention of queries, keys and values in integers, with the rounding of its result."""
    *heads, mask, causal, scale, gqa, levels = arguments(chain.layer).values()
    read, sources = zip(*(bytes_of(context, arg) for arg in heads), strict=True)
    if levels > MOST_LEVELS:
        raise Unsupported(f"it computes with probabilities in {levels} levels")
    if chain.out is not None:
        check_bytes("result", chain.out)
    if mask is not None:
        meta = context.graph.meta(mask.name)
        if meta is None or meta.dtype not in ("bool", "float32"):
            raise Unsupported("its mask is neither bool nor float32")
        read = (*read, mask)
    operation = Attend(causal, scale, gqa, levels, sources, chain.out)
    return "attention", operation, read


def embedding(context: Context, chain: Chain) -> Call:
    """Rows of a table of int8, by numbers that are made outside of programs."""
    if obstacle(context):
        raise Unsupported(obstacle(context))
    given = arguments(chain.layer)
    weight, rows = weight_behind(context.graph, given["weight"]), given["indices"]
    meta = context.graph.meta(rows.name)
    if weight is None or weight.unpack is not None or weight.stored.dtype != torch.int8:
        raise Unsupported("its table is not int8")
    if weight.grouped or max(weight.scale.shape[1:]) > 1 or meta is None or meta.dtype != "int64":
        raise Unsupported("its rows have no scale of their own, or no numbers of int64")
    scales, zero_points = (
        t.reshape(-1).expand(len(weight.stored)).contiguous()
        for t in (weight.scale, weight.zero_point)
    )
    operation = Gather(weight.stored.contiguous(), scales.float(), zero_points.int())
    return Call("native.embedding", Program.of(operation, 1), (rows,))


def concatenate(context: Context, chain: Chain) -> Described:
    """Concatenation of tensors of one scale."""
    given = arguments(chain.layer)
    sources = [bytes_of(context, arg) for arg in given["tensors"]]
    if any(integers != chain.out for _, integers in sources):
        raise Unsupported("its inputs and its result have scales of their own")
    operation = operations.Concatenate(given["dim"])
    return "cat", operation, tuple(ref for ref, _ in sources)


def roll(context: Context, chain: Chain) -> Described:
    """Integers that are moved along axes."""
    x, _ = _unscaled(context, chain)
    return "roll", roll_of(chain.layer), (x,)


def pad(context: Context, chain: Chain) -> Described:
    """One integer around others."""
    x, source = _unscaled(context, chain)
    return "pad", padding_of(chain.layer, source), (x,)


def _unscaled(context: Context, chain: Chain) -> tuple[Ref, Integers]:
    """The only input, where the result has its very integers."""
    x, source = bytes_of(context, chain.layer.args[0])
    if _out(chain) != source:
        raise Unsupported("its result has a scale of its own")
    return x, source


def _out(chain: Chain) -> Integers:
    """The integers that a chain ends in.

    Raises:
        Unsupported: its result is not rounded.
    """
    if chain.out is None:
        raise Unsupported("its result is not quantized")
    check_bytes("result", chain.out)
    return chain.out


def _clipped(chain: Chain) -> Integers:
    out = _out(chain)
    return out if chain.activation is None else out.clipped(*clip_bounds(chain.activation))


def _check_rank(context: Context, node: Node, most: int, least: int = 0) -> None:
    meta = context.graph.metas[node.name]
    if meta is None or not least <= len(meta.shape) <= most:
        raise Unsupported(f"it is no tensor of {least} to {most} axes")


# Nothing is added to layers whose sums stand elsewhere than their results.
_ALONE = replace(NATIVE, addition=False)

KERNELS = (
    Kernel(("conv1d", "conv2d"), native(convolution), fusion=NATIVE),
    Kernel(("conv3d",), native(volume), fusion=_ALONE),
    Kernel(("conv_transpose1d", "conv_transpose2d"), native(transposed), fusion=_ALONE),
    Kernel(("linear",), native(linear), fusion=NATIVE),
    Kernel(("add",), native(two(Combination.ADD)), fusion=Fusion(CLIPS)),
    Kernel(("sub",), native(two(Combination.ADD, -1)), fusion=Fusion(CLIPS)),
    Kernel(("mul",), native(two(Combination.MULTIPLY)), fusion=Fusion(CLIPS)),
    Kernel(("relu", "hardtanh"), native(activation)),
    Kernel(("mean",), native(mean)),
    Kernel(("avg_pool2d", "adaptive_avg_pool2d"), native(average)),
    Kernel(("max_pool2d",), native(max_pool2d)),
    Kernel(("cat",), native(concatenate)),
    Kernel((*LOOKS, "getitem"), look),
    Kernel(("roll",), native(roll)),
    Kernel(PADDINGS, native(pad)),
    Kernel(("layer_norm", "rms_norm", "softmax"), native(norm)),
    Kernel(("attention",), native(attention)),
    Kernel(("embedding",), embedding, Reads.FLOATS, fusion=None),
)
