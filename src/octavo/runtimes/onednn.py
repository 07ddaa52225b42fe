"""Convolution and linear layers on oneDNN's int8 kernels, through ``torch.ops.onednn``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo import operators
from octavo.graph import Node, Ref
from octavo.runtimes import cpu, integer_kernels, saturation
from octavo.runtimes.chains import CLIPPING_ACTIVATIONS, Call, Chain, Context, Unsupported
from octavo.runtimes.integer_kernels import Integers

# Kernel -> the activations that it applies itself.
_NATIVE = {
    "conv1d": frozenset({"relu"}),
    "conv2d": frozenset({"relu", "hardtanh", "hardswish", "silu"}),
    "conv3d": frozenset[str](),
    "linear": frozenset({"relu", "hardtanh", "hardswish", "silu", "gelu", "leaky_relu", "tanh"}),
}
# Activation -> oneDNN's name of it.
_NAMES = {"silu": "swish"}
# Weights are packed for an input of some size. Any will do for all, but without one oneDNN packs
# them anew at each call.
_ROWS = 128
_NO_POST_OP: tuple[str, list[float], str] = ("none", [], "")


@dataclass(frozen=True)
class PostOp:
    """What happens to a kernel's sums: its own post-operation, then a clip of the result if any."""

    native: tuple[str, list[float], str] = _NO_POST_OP
    clip: tuple[float, float] | None = None

    def after(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function with the clip behind it."""
        return function if self.clip is None else _clipping(function, *self.clip)


def conv(context: Context, chain: Chain) -> Call:
    """A convolution, with addition and activation, weights packed now."""
    x, source = context.source(chain.layer.args[0])
    packed = PackedConv.of(context, chain.layer, source)
    operands = (x, source.scale, source.zero_point, *packed.weights)
    result = (packed.bias, *packed.geometry, *output(chain.out))
    op = chain.layer.short_op
    if chain.addition is None:
        post_op = post_op_of(chain, op)
        kernel = post_op.after(convolution(context, op, packed))
        return Call(f"onednn.q{op}", kernel, (*operands, *result, *post_op.native))
    assert chain.out is not None
    other_arg = next(arg for arg in chain.addition.args if arg != Ref(chain.layer.name))
    other, summand = context.source(other_arg)
    unary: tuple[Any, ...] = ("relu" if chain.activation is not None else None, [], None)
    clip = (chain.out.low, chain.out.high) if _is_narrow(chain.out) else None
    product = PostOp(clip=clip).after(_on_channels_last(torch.ops.onednn.qconv2d_pointwise.binary))
    return Call(
        "onednn.qconv2d.sum",
        product,
        (*operands, other, *result, summand.scale, summand.zero_point, "sum", 1.0, *unary),
        overwrites=other.name,
    )


def convolution(context: Context, op: str, packed: PackedConv) -> Callable[..., Tensor]:
    """The kernel of ``"conv1d"`` to ``"conv3d"``.

    Raises:
        Unsupported: a package has none.
    """
    if not context.packaged:
        kernel: Callable[..., Tensor] = getattr(torch.ops.onednn, f"q{op}_pointwise").default
        return kernel
    if op != "conv2d":
        raise Unsupported(f"a package has no integer kernel for {op}")
    kernel = torch.ops.onednn.qconv_pointwise.default  # the one name that Inductor calls from C++
    return _with_two_channels(kernel) if packed.padded else kernel


def _with_two_channels(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(x: Tensor, *args: Any) -> Tensor:
        return kernel(F.pad(x, (0, 0, 0, 0, 0, 1)), *args)

    return call


@dataclass(frozen=True)
class PackedConv:
    """A convolution's arguments as the kernel takes them.

    Attributes:
        weights: the packed weight, its scales and zero points.
        bias: a `Ref`, or ``None``.
        geometry: stride, padding, dilation, groups.
        padded: the weight has got a second channel of zeros, as the input has to.
    """

    weights: tuple[Any, ...]
    bias: Ref | None
    geometry: tuple[Any, ...]
    padded: bool = False

    @classmethod
    def of(cls, context: Context, layer: Node, source: Integers) -> PackedConv:
        """Pack the weight of a convolution that reads these integers.

        Raises:
            Unsupported: the kernel takes no such weight or input.
        """
        dims = int(layer.short_op[4])
        defaults = (None, None, None, [1], [0], [1], 1)
        x, weight_arg, bias, *sizes, groups = layer.args + defaults[len(layer.args) :]
        weight, scale = context.weight(weight_arg)
        depthwise = groups == weight.shape[0] and weight.shape[1] == 1
        check_kernel(source, None if depthwise else weight)
        geometry = (*(sized(value, dims) for value in sizes), groups)
        meta = context.metas[x.name]
        shape = None if meta is None else [1 if size is None else size for size in meta.shape]
        padded = context.packaged and dims == 2 and weight.shape[1] * groups == 1
        if padded:
            # Of one channel Inductor takes the result to be in another order than it is.
            weight = F.pad(weight, (0, 0, 0, 0, 0, 1))
            shape = None if shape is None else [shape[0], 2, *shape[2:]]
        packed = torch.ops.onednn.qconv_prepack(
            weight, scale, source.scale, source.zero_point, *geometry, shape
        )
        zero_points = torch.zeros(len(scale), dtype=torch.int32)
        return cls((packed, scale, zero_points), bias, geometry, padded)


def linear(context: Context, chain: Chain) -> Call:
    """A linear layer with activation, weights packed now."""
    x_arg, weight_arg, bias = (*chain.layer.args, None)[:3]
    x, source = context.source(x_arg)
    weight, scale = context.weight(weight_arg)
    check_kernel(source, weight)
    name, product = product_kernel(context, weight, scale, chain)
    return Call(name, product, (x, source.scale, source.zero_point, bias))


def product_kernel(
    context: Context, weight: Tensor, scale: Tensor, chain: Chain
) -> tuple[str, Callable[..., Tensor]]:
    """A kernel for ``x @ weight.T``: its name, and ``(q, scale, zero_point, bias) -> result``.

    Without VNNI oneDNN's 1x1 convolution computes the same product, on few rows much faster than
    its matrix product does.
    """
    if cpu.saturates():
        return "onednn.qconv2d as linear", _by_convolution(context, weight, scale, chain)
    packed = torch.ops.onednn.qlinear_prepack(weight, [_ROWS, weight.shape[1]])
    zero_points = torch.zeros(len(scale), dtype=torch.int32)
    post_op, out = post_op_of(chain, "linear"), output(chain.out)
    kernel = torch.ops.onednn.qlinear_pointwise.default

    def product(q: Tensor, x_scale: float, zero_point: int, bias: Tensor | None) -> Tensor:
        result: Tensor = kernel(
            q, x_scale, zero_point, packed, scale, zero_points, bias, *out, *post_op.native
        )
        return result

    return "onednn.qlinear", post_op.after(product)


def _by_convolution(
    context: Context, weight: Tensor, scale: Tensor, chain: Chain
) -> Callable[..., Tensor]:
    """Rows are the width of an image of height one, columns its channels, channels last."""
    columns = weight.shape[1]
    if context.packaged and columns == 1:
        raise Unsupported("a package has no integer kernel for one input")
    geometry = ([1, 1], [0, 0], [1, 1], 1)
    packed = torch.ops.onednn.qconv_prepack(
        weight.reshape(*weight.shape, 1, 1), scale, 1.0, 0, *geometry, [1, columns, 1, _ROWS]
    )
    sums = weight.sum(1, dtype=torch.float32) * scale
    zero_points = torch.zeros(len(scale), dtype=torch.int32)
    whole = chain
    if chain.activation is not None and chain.activation.short_op not in _NATIVE["conv2d"]:
        chain = Chain(chain.layer)
    post_op, out = post_op_of(chain, "conv2d"), output(chain.out)
    kernel = getattr(
        torch.ops.onednn, "qconv_pointwise" if context.packaged else "qconv2d_pointwise"
    ).default

    def product(q: Tensor, x_scale: float, zero_point: int, bias: Tensor | None) -> Tensor:
        image = q.reshape(1, 1, -1, columns).permute(0, 3, 1, 2)
        # The zero point goes into the bias: for another one than it was packed for, oneDNN would
        # pack the weight anew at each call.
        if zero_point:
            shift = -x_scale * zero_point
            bias = sums * shift if bias is None else torch.add(bias, sums, alpha=shift)
        weights = (packed, scale, zero_points, bias)
        result: Tensor = kernel(image, x_scale, 0, *weights, *geometry, *out, *post_op.native)
        return result.permute(0, 2, 3, 1).reshape(*q.shape[:-1], len(scale))

    return post_op.after(product) if chain is whole else _activated(product, whole)


def _activated(product: Callable[..., Tensor], chain: Chain) -> Callable[..., Tensor]:
    """A product with float sums, then the chain's activation in float, then integers if wanted."""
    activation, out = chain.activation, chain.out
    assert activation is not None
    operator = operators.resolve(activation.op)
    arguments, keywords = activation.args[1:], dict(activation.kwargs)
    store = None if out is None else integer_kernels.quantize(out)

    def call(*args: Any) -> Tensor:
        activated: Tensor = operator(product(*args), *arguments, **keywords)
        return activated if store is None else store(activated)

    return call


def sized(value: Any, dims: int) -> list[int]:
    """A size for each dimension, given as one number, one in a list, or all."""
    sizes = list(value) if isinstance(value, list | tuple) else [value]
    return sizes * dims if len(sizes) == 1 else sizes


def check_kernel(source: Integers, weight: Tensor | None) -> None:
    """Refuse what the int8 kernel of this CPU does not compute, or computes wrongly.

    A depthwise kernel (``None`` for the weight) sums no pairs of products.

    Raises:
        Unsupported: there is no kernel, or it would overflow.
    """
    missing = cpu.missing_kernels()
    if missing is not None:
        raise Unsupported(missing)
    if source.dtype != torch.uint8:
        raise Unsupported(f"its input is {source.dtype}, the kernel takes 8 bits")
    if weight is not None and cpu.saturates() and saturation.overflows(weight, source.high):
        raise Unsupported(saturation.REASON)


def output(out: Integers | None) -> tuple[float, int, torch.dtype]:
    """A kernel's output scale, zero point and dtype.

    Raises:
        Unsupported: the result is of a type that the kernels do not store.
    """
    if out is None:
        return (1.0, 0, torch.float32)
    if out.dtype != torch.uint8:
        raise Unsupported(f"its result is {out.dtype}, the kernel stores 8 bits")
    return (out.scale, out.zero_point, out.dtype)


def post_op_of(chain: Chain, kernel: str) -> PostOp:
    """The kernel's post-operation, and the clip of its result afterwards if any.

    The kernel itself clips to 0..255. Fewer bits are reached by a tighter hardtanh, which costs
    nothing; where the kernel has none they need a pass of their own.
    """
    kind = None if chain.activation is None else chain.activation.short_op
    narrow = chain.out is not None and _is_narrow(chain.out)
    native = _NATIVE[kernel]
    if chain.activation is not None and kind not in CLIPPING_ACTIVATIONS:
        clip = (chain.out.low, chain.out.high) if chain.out is not None and narrow else None
        return PostOp(_native_post_op(chain.activation), clip)
    if kind is None and not narrow:
        return PostOp()
    if kind == "relu" and not narrow and kind in native:
        return PostOp(("relu", [], ""))
    low, high = (float("-inf"), float("inf"))
    if chain.activation is not None:
        low, high = clip_bounds(chain.activation)
    if "hardtanh" not in native:
        if chain.out is None:
            return PostOp(clip=(low, high))
        stored = chain.out.clipped(low, high)
        return PostOp(clip=(stored.low, stored.high))
    if chain.out is not None:
        out = chain.out
        low = max(low, (out.low - out.zero_point) * out.scale)
        high = min(high, (out.high - out.zero_point) * out.scale)
    return PostOp(("hardtanh", [low, high], ""))


def clip_bounds(node: Node) -> tuple[float, float]:
    """The real values between which a relu or hardtanh leaves its input as it is."""
    if node.short_op == "relu":
        return 0.0, float("inf")
    given = node.args[1:]
    low, high = given + (-1.0, 1.0)[len(given) :]
    return low, high


def _native_post_op(node: Node) -> tuple[str, list[float], str]:
    name = _NAMES.get(node.short_op, node.short_op)
    if name == "gelu":
        return name, [], node.kwargs.get("approximate", "none")
    if name == "leaky_relu":
        return name, [node.args[1] if len(node.args) > 1 else 0.01], ""
    return name, [], ""


def _is_narrow(out: Integers) -> bool:
    """Whether not all of the dtype's integers may be stored."""
    limits = torch.iinfo(out.dtype)
    return out.low > limits.min or out.high < limits.max


def _on_channels_last(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A kernel that adds its seventh argument needs that in channels-last order."""

    def call(*args: Any) -> Tensor:
        other: Tensor = args[6]
        if other.is_contiguous(memory_format=torch.channels_last):
            return function(*args)
        ordered = other.contiguous(memory_format=torch.channels_last)
        return function(*args[:6], ordered, *args[7:])

    return call


def _clipping(function: Callable[..., Tensor], low: float, high: float) -> Callable[..., Tensor]:
    def clipped(*args: Any) -> Tensor:
        return function(*args).clamp_(low, high)

    return clipped
