"""Convolution and linear layers on oneDNN's int8 kernels, through ``torch.ops.onednn``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from octavo.graph import Node, Ref
from octavo.runtimes import cpu
from octavo.runtimes.chains import Call, Chain, Context, Unsupported
from octavo.runtimes.integer_kernels import Integers


def conv2d(context: Context, chain: Chain) -> Call:
    """A convolution, with addition and activation, weights packed now."""
    defaults = (None, None, None, [1, 1], [0, 0], [1, 1], 1)
    args = chain.layer.args
    x_arg, weight_arg, bias, stride, padding, dilation, groups = args + defaults[len(args) :]
    x, source = context.source(x_arg)
    weight, scale = context.weight(weight_arg)
    depthwise = groups == weight.shape[0] and weight.shape[1] == 1
    _check_kernel(source, None if depthwise else weight)
    geometry = (pair(stride), pair(padding), pair(dilation), groups)
    meta = context.metas[x_arg.name]
    shape = None if meta is None else [1 if size is None else size for size in meta.shape]
    packed = torch.ops.onednn.qconv_prepack(
        weight, scale, source.scale, source.zero_point, *geometry, shape
    )
    zero_points = torch.zeros(len(scale), dtype=torch.int32)
    operands = (x, source.scale, source.zero_point, packed, scale, zero_points)
    out_scale, out_zero_point, out_dtype = _output(chain.out)
    result = (bias, *geometry, out_scale, out_zero_point, out_dtype)
    if chain.addition is None:
        post_op, clip = _post_op(chain)
        function = _clipping(torch.ops.onednn.qconv2d_pointwise.default, clip)
        return Call("onednn.qconv2d", function, (*operands, *result, *post_op))
    other_arg = next(arg for arg in chain.addition.args if arg != Ref(chain.layer.name))
    other, summand = context.source(other_arg)
    unary: tuple[Any, ...] = ("relu" if chain.activation is not None else None, [], None)
    return Call(
        "onednn.qconv2d.sum",
        _clipping(torch.ops.onednn.qconv2d_pointwise.binary, _upper_bound(chain.out)),
        (*operands, other, *result, summand.scale, summand.zero_point, "sum", 1.0, *unary),
        overwrites=other.name,
    )


def linear(context: Context, chain: Chain) -> Call:
    """A linear layer with activation, weights packed now."""
    x_arg, weight_arg, bias = (*chain.layer.args, None)[:3]
    x, source = context.source(x_arg)
    weight, scale = context.weight(weight_arg)
    _check_kernel(source, weight)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    zero_points = torch.zeros(len(scale), dtype=torch.int32)
    post_op, clip = _post_op(chain)
    function = _clipping(torch.ops.onednn.qlinear_pointwise.default, clip)
    operands = (x, source.scale, source.zero_point, packed, scale, zero_points, bias)
    return Call("onednn.qlinear", function, (*operands, *_output(chain.out), *post_op))


def pair(value: Any) -> list[int]:
    """A size for height and width, given as one number, one in a list, or two."""
    sizes = list(value) if isinstance(value, list | tuple) else [value]
    return sizes * 2 if len(sizes) == 1 else sizes


def _check_kernel(source: Integers, weight: Tensor | None) -> None:
    """Refuse what the int8 kernel of this CPU does not compute, or computes wrongly.

    Without VNNI ``x0 * w0 + x1 * w1`` is summed in int16. It fits for certain where the largest
    activation times the sum of the two largest weights of one sign does; a depthwise kernel
    (``None`` for the weight) sums no such pairs.
    """
    missing = cpu.missing_kernels()
    if missing is not None:
        raise Unsupported(missing)
    if source.dtype != torch.uint8:
        raise Unsupported(f"its input is {source.dtype}, the kernel takes torch.uint8")
    if weight is None or not cpu.saturates():
        return
    rows = weight.flatten(1).to(torch.int32)
    count = min(2, rows.shape[1])
    sums = [side.clamp(min=0).topk(count, dim=1).values.sum(1).max() for side in (rows, -rows)]
    if source.high * max(int(s) for s in sums) > torch.iinfo(torch.int16).max:
        raise Unsupported(
            "this CPU has no VNNI, its int8 kernel would saturate on 8-bit activations: "
            'quantize with target="x86-avx2"'
        )


def _output(out: Integers | None) -> tuple[float, int, torch.dtype]:
    return (1.0, 0, torch.float32) if out is None else (out.scale, out.zero_point, out.dtype)


# Activation -> oneDNN's name of it.
_NAMES = {"relu": "relu", "hardtanh": "hardtanh", "hardswish": "hardswish", "silu": "swish"}


def _post_op(chain: Chain) -> tuple[tuple[str, list[float], str], int | None]:
    """The kernel's post-operation, and the integer to clip its result to afterwards if any.

    The kernel itself clips to 0..255. Fewer bits are reached by a tighter hardtanh, which costs
    nothing; behind another activation they need a pass of their own.
    """
    bound = _upper_bound(chain.out)
    kind = None if chain.activation is None else chain.activation.short_op
    if kind == "hardtanh" or (bound is not None and kind in (None, "relu")):
        low, high = float("-inf"), float("inf")
        if kind == "relu":
            low = 0.0
        elif chain.activation is not None:
            low, high = hardtanh_bounds(chain.activation)
        if chain.out is not None:
            out = chain.out
            low = max(low, (out.low - out.zero_point) * out.scale)
            high = min(high, (out.high - out.zero_point) * out.scale)
        return ("hardtanh", [low, high], ""), None
    if kind is None:
        return ("none", [], ""), None
    return (_NAMES[kind], [], ""), bound


def hardtanh_bounds(node: Node) -> tuple[float, float]:
    """Both bounds of a hardtanh, defaults filled in."""
    given = node.args[1:]
    low, high = given + (-1.0, 1.0)[len(given) :]
    return low, high


def _upper_bound(out: Integers | None) -> int | None:
    return None if out is None or out.high == torch.iinfo(out.dtype).max else out.high


def _clipping(function: Callable[..., Tensor], bound: int | None) -> Callable[..., Tensor]:
    if bound is None:
        return function

    def clipped(*args: Any) -> Tensor:
        return function(*args).clamp_(max=bound)

    return clipped
