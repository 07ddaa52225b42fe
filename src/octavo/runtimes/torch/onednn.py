"""Convolution and linear layers on oneDNN's int8 kernels, through ``torch.ops.onednn``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.graph import operators
from octavo.graph.graph import Node, Ref
from octavo.graph.operators import arguments
from octavo.graph.weight_layouts import groups_of, is_depthwise
from octavo.quantization.fusions import ONEDNN
from octavo.runtimes import cpu, saturation
from octavo.runtimes.integers import Integers
from octavo.runtimes.torch import integer_kernels
from octavo.runtimes.torch.chains import Call, Chain, Context, Unsupported
from octavo.runtimes.torch.kernel import Kernel
from octavo.runtimes.torch.post_ops import NATIVE, PostOp, is_narrow, output, post_op_of
from octavo.runtimes.torch.row_counts import with_few_row_counts

# Weights are packed for an input of some size. Any will do for all, but without one oneDNN packs
# them anew at each call.
_ROWS = 128
_PIXELS = 56  # of an image's side, where that is open


def conv(context: Context, chain: Chain) -> Call:
    """A convolution, with addition and activation, weights packed now."""
    x, source = context.source(chain.layer.args[0])
    packed = PackedConv.of(context, chain.layer, source)
    operands = (x, source.scale, source.zero_point, *packed.weights)
    op = chain.layer.short_op
    if chain.addition is None:
        post_op, out = post_op_of(chain, op, source.scale * packed.weights[1])
        kernel = post_op.after(packed.reading(convolution(context, op)))
        result = (packed.bias, *packed.geometry, *out, *post_op.native)
        return Call(f"onednn.q{op}", kernel, (*operands, *result))
    assert chain.out is not None
    other_arg = next(arg for arg in chain.addition.args if arg != Ref(chain.layer.name))
    other, summand = context.source(other_arg)
    unary = "relu" if chain.activation is not None else None
    added: tuple[Any, ...] = (summand.scale, summand.zero_point, "sum", 1.0, unary, [], None)
    clip = (chain.out.low, chain.out.high) if is_narrow(chain.out) else None
    binary = _on_channels_last(torch.ops.onednn.qconv2d_pointwise.binary)
    product = PostOp(clip=clip).after(packed.reading(binary, adds=True))
    return Call(
        "onednn.qconv2d.sum",
        product,
        (*operands, other, packed.bias, *packed.geometry, *output(chain.out), *added),
        overwrites=other.name,
    )


def convolution(context: Context, op: str) -> Callable[..., Tensor]:
    """The kernel of ``"conv1d"`` to ``"conv3d"``.

    Raises:
        Unsupported: a package has none.
    """
    if context.caller != "package":
        kernel: Callable[..., Tensor] = getattr(torch.ops.onednn, f"q{op}_pointwise").default
        return kernel
    if op != "conv2d":
        raise Unsupported(f"a package has no integer kernel for {op}")
    kernel = torch.ops.onednn.qconv_pointwise.default  # the one name that Inductor calls from C++
    return kernel


@dataclass(frozen=True)
class PackedConv:
    """A convolution's arguments as the kernel takes them.

    Attributes:
        weights: the packed weight, its scales and zero points.
        bias: a `Ref`, or ``None``.
        geometry: stride, padding, dilation, groups.
        border: what `torch.nn.functional.pad` puts around the input, where the kernel cannot.
        doubled: each group has got a second input channel, with weights of zero.
        taps: of a window, along its last axis.
        columns: how many more an input gets where its result would be one column wide; 0 for none.
    """

    weights: tuple[Any, ...]
    bias: Ref | None
    geometry: tuple[Any, ...]
    border: tuple[int, ...]
    doubled: bool
    taps: int
    columns: int

    @classmethod
    def of(cls, context: Context, layer: Node, source: Integers) -> PackedConv:
        """Pack the weight of a convolution that reads these integers.

        Raises:
            Unsupported: the kernel takes no such weight or input.
        """
        dims = int(layer.short_op[4])
        x, weight_arg, bias, *sizes, groups = arguments(layer).values()
        weight, scale = context.weight(weight_arg)
        check_kernel(source, None if is_depthwise(groups_of(layer), weight) else weight)
        strides, paddings, dilations = (sized(value, dims) for value in sizes)
        if skips_values(weight, strides):
            raise Unsupported(
                "with AMX torch's kernel for volumes is wrong at times where it skips values"
            )
        meta = context.graph.metas[x.name]
        image: Sequence[int | None] = [None] * dims if meta is None else meta.shape[2:]
        outside = [0] * dims
        window = weight.shape[2:]
        wider = _misreads_rows(weight)
        moved = wider or _windows_miss(image, window, paddings, dilations)
        if moved or _misreads_depth(image, paddings):
            outside, paddings = paddings, outside
        border = [size for padding in reversed(outside) for size in (padding, padding)]
        doubled = _misreads_one_channel(context, weight, strides, groups)
        if doubled:
            weight = F.pad(weight, [0, 0] * dims + [0, 1])
        if wider:  # by a tap of zeros, for which there has to be a column
            weight = F.pad(weight, (0, 1))
            border[1] += dilations[-1]
        # Where a size is open, a usual one that a window fits into.
        windows = [d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
        known = [n or max(_PIXELS, window) for n, window in zip(image, windows, strict=True)]
        read = [size + 2 * p for size, p in zip(known, outside, strict=True)]
        geometry = (strides, paddings, dilations, groups)
        packed = torch.ops.onednn.qconv_prepack(
            weight,
            scale,
            source.scale,
            source.zero_point,
            *geometry,
            [1, weight.shape[1] * groups, *read],
        )
        if groups == 1 and not doubled and not wider:
            # Groups are not asked back: oneDNN unpacks more than there is room for, of some.
            context.hold(weight_arg, lambda: packed.to_dense().contiguous())
        zero_points = torch.zeros(len(scale), dtype=torch.int32)
        columns = strides[-1] if dims > 1 and strides[-1] > 1 and window[-1] > 1 else 0
        held = (packed, scale, zero_points)
        return cls(held, bias, geometry, tuple(border), doubled, weight.shape[-1], columns)

    def reading(self, kernel: Callable[..., Tensor], adds: bool = False) -> Callable[..., Tensor]:
        """The kernel, given an input as this convolution reads it.

        Args:
            kernel: of torch.
            adds: whether it adds its seventh argument to the result.
        """
        if not any(self.border) and not self.doubled and not self.columns:
            return kernel

        def call(x: Tensor, scale: float, zero_point: int, *args: Any) -> Tensor:
            if self.doubled:
                x = x.repeat_interleave(2, 1)
            if any(self.border):
                x = F.pad(x, self.border, value=zero_point)
            if not self.columns or not self._is_one_column(x):
                return kernel(x, scale, zero_point, *args)
            x = F.pad(x, (0, self.columns), value=zero_point)
            if adds:
                args = (*args[:3], F.pad(args[3], (0, 1)), *args[4:])
            return kernel(x, scale, zero_point, *args)[..., :1].clone()

        return call

    def _is_one_column(self, x: Tensor) -> bool:
        """Whether the result is one column wide, though its windows are wider and have strides.

        With AMX oneDNN 3.x computes such results wrongly, whatever else their sizes are.
        """
        strides, paddings, dilations, _ = self.geometry
        window = dilations[-1] * (self.taps - 1) + 1
        return bool(x.shape[-1] + 2 * paddings[-1] - window < strides[-1])


def _windows_miss(
    image: Sequence[int | None],
    window: Sequence[int],
    paddings: Sequence[int],
    dilations: Sequence[int],
) -> bool:
    """Whether a window may lie wholly in the padding, beside the image or with the image between
    two of its taps. There oneDNN reads memory that is not the image's.
    """
    return any(
        padding > dilation * (taps - 1)
        or (padding > 0 and dilation > (1 if size is None else size))
        for size, taps, padding, dilation in zip(image, window, paddings, dilations, strict=True)
    )


def _misreads_rows(weight: Tensor) -> bool:
    """Whether a row of a window is of a length, in values, that is computed wrongly with AMX:
    several times 64, of fewer than 32 channels.
    """
    row = weight.shape[1] * weight.shape[-1]
    return weight.shape[1] < 32 and row > 64 and row % 64 == 0


def _misreads_depth(image: Sequence[int | None], paddings: Sequence[int]) -> bool:
    """Whether a volume may be one image deep, and padded in front and behind.

    With AVX512 oneDNN computes that wrongly for one input channel, with AMX for any number that is
    no multiple of four.
    """
    return len(image) == 3 and image[0] in (1, None) and paddings[0] > 0


def skips_values(weight: Tensor, strides: Sequence[int]) -> bool:
    """Whether windows of volumes skip values between them, on a CPU with AMX.

    There oneDNN computes some such layers wrongly with several threads, in some calls and not in
    others, so that a comparison may not see it.
    """
    sizes = zip(strides, weight.shape[2:], strict=True)
    return weight.dim() == 5 and cpu.has_amx() and any(stride > taps for stride, taps in sizes)


def _misreads_one_channel(
    context: Context, weight: Tensor, strides: Sequence[int], groups: int
) -> bool:
    """Whether a kernel for groups of one input channel is to be avoided.

    With AVX512 oneDNN computes several outputs of one wrongly for some shapes, all of which have
    strides or three dimensions. In a package Inductor takes the result of one channel in all to be
    in another order than it is.
    """
    outputs, inputs = weight.shape[:2]
    wrong = outputs > groups and (weight.dim() == 5 or strides[-1] > 1)
    return inputs == 1 and (wrong or (context.caller == "package" and groups == 1))


def _with_few_row_counts(
    make: Callable[..., tuple[str, Callable[..., Tensor]]],
) -> Callable[..., tuple[str, Callable[..., Tensor]]]:
    """What is made computes at few numbers of rows, see `octavo.runtimes.torch.row_counts`."""

    @wraps(make)
    def made(context: Context, weight: Tensor, *rest: Any) -> tuple[str, Callable[..., Tensor]]:
        name, product = make(context, weight, *rest)
        return name, with_few_row_counts(product, weight.shape[1])

    return made


def linear(context: Context, chain: Chain) -> Call:
    """A linear layer with activation, weights packed now."""
    x_arg, weight_arg, bias = arguments(chain.layer).values()
    x, source = context.source(x_arg)
    weight, scale = context.weight(weight_arg)
    check_kernel(source, weight)
    name, product = product_kernel(context, weight, scale, chain, source.scale)
    return Call(name, product, (x, source.scale, source.zero_point, bias))


@_with_few_row_counts
def product_kernel(
    context: Context,
    weight: Tensor,
    scale: Tensor,
    chain: Chain,
    input_scale: float | None = None,
) -> tuple[str, Callable[..., Tensor]]:
    """A kernel for ``x @ weight.T``: its name, and ``(q, scale, zero_point, bias) -> result``.

    ``input_scale`` is the scale of q where it is always the same.

    Without VNNI oneDNN's 1x1 convolution computes the same product, on few rows much faster than
    its matrix product does. Inductor takes a matrix product only with weights that are parameters
    of a module, and a convolution with any.
    """
    step = None if input_scale is None else input_scale * scale
    if cpu.saturates() or context.caller == "compiler":
        return "onednn.qconv2d as linear", _by_convolution(context, weight, scale, chain, step)
    packed = torch.ops.onednn.qlinear_prepack(weight, [_ROWS, weight.shape[1]])
    context.hold(arguments(chain.layer)["weight"], lambda: packed.to_dense().t().contiguous())
    zero_points = torch.zeros(len(scale), dtype=torch.int32)
    post_op, out = post_op_of(chain, "linear", step)
    kernel = torch.ops.onednn.qlinear_pointwise.default

    def product(q: Tensor, x_scale: float, zero_point: int, bias: Tensor | None) -> Tensor:
        result: Tensor = kernel(
            q, x_scale, zero_point, packed, scale, zero_points, bias, *out, *post_op.native
        )
        return result

    return "onednn.qlinear", post_op.after(product)


def _by_convolution(
    context: Context, weight: Tensor, scale: Tensor, chain: Chain, step: Tensor | None
) -> Callable[..., Tensor]:
    """Rows are the width of an image of height one, columns its channels, channels last."""
    columns = weight.shape[1]
    if context.caller == "package" and columns == 1:
        raise Unsupported("a package has no integer kernel for one input")
    geometry = ([1, 1], [0, 0], [1, 1], 1)
    packed = torch.ops.onednn.qconv_prepack(
        weight.reshape(*weight.shape, 1, 1), scale, 1.0, 0, *geometry, [1, columns, 1, _ROWS]
    )
    shape = weight.shape
    context.hold(arguments(chain.layer)["weight"], lambda: packed.to_dense().reshape(shape))
    sums = weight.sum(1, dtype=torch.float32) * scale
    zero_points = torch.zeros(len(scale), dtype=torch.int32)
    whole = chain
    if chain.activation is not None and chain.activation.short_op not in NATIVE["conv2d"]:
        chain = Chain(chain.layer)
    post_op, out = post_op_of(chain, "conv2d", step)
    kernel = getattr(
        torch.ops.onednn, "qconv_pointwise" if context.caller == "package" else "qconv2d_pointwise"
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
    positional, keywords = activation.args[1:], dict(activation.kwargs)
    store = None if out is None else integer_kernels.quantize(out)

    def call(*args: Any) -> Tensor:
        activated: Tensor = operator(product(*args), *positional, **keywords)
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


def _on_channels_last(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A kernel that adds its seventh argument needs that in channels-last order."""

    def call(*args: Any) -> Tensor:
        other: Tensor = args[6]
        if other.is_contiguous(memory_format=torch.channels_last):
            return function(*args)
        ordered = other.contiguous(memory_format=torch.channels_last)
        return function(*args[:6], ordered, *args[7:])

    return call


KERNELS = (
    *(Kernel((op,), conv, fusion=ONEDNN[op]) for op in ("conv1d", "conv2d", "conv3d")),
    Kernel(("linear",), linear, fusion=ONEDNN["linear"]),
)
