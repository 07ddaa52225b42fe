"""Shapes of layers: convolutions, pooling, products, normalization, attention, recurrence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.graph.checked_operators import check_recurrent
from octavo.graph.soundness.shapes.common import Rule, broadcast, each, made, require

Values = Mapping[str, Any]


def _convolution(operator: Any, values: Values) -> Tensor:
    weight = values["weight"]
    n = weight.dim() - 2
    name = operator._schema.name.removeprefix("aten::")
    require(n == int(name[-2]) if name != "convolution" else n > 0, "a weight of another rank")
    transposed = values.get("transposed", "transpose" in name)
    x, batch = _batched(values, n)
    stride, dilation = each(values["stride"], n), each(values["dilation"], n)
    groups, kernel = values["groups"], list(weight.shape[2:])
    require(groups > 0 and min(*stride, *dilation, *kernel, *x[1:]) > 0, "sizes below one")
    require(
        x[0] == weight.shape[0 if transposed else 1] * (1 if transposed else groups),
        "channels do not fit",
    )
    require(weight.shape[0] > 0 and weight.shape[0] % groups == 0, "groups do not fit the channels")
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if values["padding"] == "same":
        require(max(stride) == 1, "padding 'same' with a stride")
        sizes = x[1:]
    else:
        padding = each(0 if values["padding"] == "valid" else values["padding"], n)
        require(min(padding) >= 0, "padding below zero")
        if transposed:
            extra = each(values["output_padding"], n)
            most = [max(s, d) for s, d in zip(stride, dilation, strict=True)]
            require(all(0 <= e < m for e, m in zip(extra, most, strict=True)), "output padding")
            sizes = [
                (size - 1) * s - 2 * p + span + e
                for size, s, p, span, e in zip(x[1:], stride, padding, spans, extra, strict=True)
            ]
        else:
            sizes = [
                (size + 2 * p - span) // s + 1
                for size, s, p, span in zip(x[1:], stride, padding, spans, strict=True)
            ]
    require(min(sizes) > 0, "a kernel larger than its input")
    _check_dtypes(values["input"], weight, values["bias"])
    _check_vector(values["bias"], channels)
    return made([*batch, channels, *sizes], values["input"].dtype)


def _batched(values: Values, n: int) -> tuple[list[int], list[int]]:
    """Channels and sizes of an input, and its batch, which may be missing."""
    x = values["input"] if "input" in values else values["self"]
    require(x.dim() in (n + 1, n + 2), f"an input of {x.dim()} axes")
    return list(x.shape[-n - 1 :]), list(x.shape[: -n - 1])


def _check_vector(vector: Tensor | None, size: int) -> None:
    if vector is not None:
        require(tuple(vector.shape) == (size,), f"{list(vector.shape)} values for {size} channels")


def _check_dtypes(first: Tensor, *others: Tensor | None) -> None:
    dtypes = {tensor.dtype for tensor in others if tensor is not None}
    require(dtypes <= {first.dtype}, f"{first.dtype} with {dtypes}")


def _linear(operator: Any, values: Values) -> Tensor:
    x, weight, bias = values["input"], values["weight"], values["bias"]
    require(weight.dim() in (1, 2) and x.dim() > 0, "a weight of another rank")
    require(x.shape[-1] == weight.shape[-1], "channels do not fit")
    _check_dtypes(x, weight, bias)
    if bias is not None:
        require(weight.dim() == 2, "a bias for one output")
        _check_vector(bias, weight.shape[0])
    return made([*x.shape[:-1], *weight.shape[:-1]], x.dtype)


def _product(operator: Any, values: Values) -> Tensor:
    """matmul, mm, bmm, mv, dot."""
    a, b = list(values.values())[:2]
    _check_dtypes(a, b)
    require(a.dim() > 0 and b.dim() > 0, "a product of a number")
    left = [1, *a.shape] if a.dim() == 1 else list(a.shape)
    right = [*b.shape, 1] if b.dim() == 1 else list(b.shape)
    require(left[-1] == right[-2], f"{list(a.shape)} and {list(b.shape)} do not fit")
    rows, columns = left[-2:-1] * (a.dim() > 1), right[-1:] * (b.dim() > 1)
    return made([*broadcast(left[:-2], right[:-2]), *rows, *columns], a.dtype)


_RANKS = {"mm": (2, 2), "bmm": (3, 3), "mv": (2, 1), "dot": (1, 1)}


def _product_of_ranks(operator: Any, values: Values) -> Tensor:
    a, b = list(values.values())[:2]
    ranks = _RANKS[operator._schema.name.removeprefix("aten::")]
    require((a.dim(), b.dim()) == ranks, f"{a.dim()} and {b.dim()} axes")
    require(a.dim() < 3 or a.shape[0] == b.shape[0], "batches do not fit")
    return _product(operator, values)


def _product_and_sum(operator: Any, values: Values) -> Tensor:
    """addmm and baddbmm."""
    x, a, b = list(values.values())[:3]
    rank = 3 if "baddbmm" in operator._schema.name else 2
    require(a.dim() == b.dim() == rank and a.shape[:-2] == b.shape[:-2], "axes do not fit")
    result = _product(operator, {"a": a, "b": b})
    _check_dtypes(a, x)
    require(broadcast(x.shape, result.shape) == tuple(result.shape), "what is added does not fit")
    return result


def einsum_sizes(
    equation: str, tensors: Sequence[Tensor]
) -> tuple[dict[str, int], tuple[int, ...]]:
    """The size that each letter of an equation stands for, and the shape of its ellipsis.

    Raises:
        ValueError: the tensors do not fit the equation.

    Example:
        >>> einsum_sizes("ij,jk->ik", [torch.ones(2, 3), torch.ones(3, 4)])
        ({'i': 2, 'j': 3, 'k': 4}, ())
    """
    sizes: dict[str, int] = {}
    ellipsis: tuple[int, ...] = ()
    inputs = equation.replace(" ", "").partition("->")[0]
    for subscript, tensor in zip(inputs.split(","), tensors, strict=True):
        before, dots, after = subscript.partition("...")
        require("." not in before + after, "an equation with stray dots")
        rest = tensor.dim() - len(before) - len(after)
        require(rest == 0 or (rest > 0 and bool(dots)), f"{subscript!r} for {tensor.dim()} axes")
        shape = list(tensor.shape)
        ellipsis = broadcast(ellipsis, shape[len(before) : len(before) + rest])
        for letter, size in zip(
            before + after, shape[: len(before)] + shape[len(before) + rest :], strict=True
        ):
            (sizes[letter],) = broadcast((sizes.get(letter, 1),), (size,))
    return sizes, ellipsis


def _einsum(operator: Any, values: Values) -> Tensor:
    tensors = values["tensors"]
    _check_dtypes(*tensors)
    sizes, ellipsis = einsum_sizes(values["equation"], tensors)
    inputs, arrow, output = values["equation"].replace(" ", "").partition("->")
    if not arrow:
        output = "..." * bool(ellipsis) + "".join(s for s in sorted(sizes) if inputs.count(s) == 1)
    before, _, after = output.partition("...")
    require(len(set(before + after)) == len(before + after), "a letter twice in the output")
    middle = ellipsis if "..." in output else ()
    return made(
        [*(sizes[s] for s in before), *middle, *(sizes[s] for s in after)], tensors[0].dtype
    )


def _pooling(operator: Any, values: Values) -> Any:
    name = operator._schema.name.removeprefix("aten::")
    n = int(name[len("max_pool")])
    x, batch = _batched(values, n)
    kernel, padding = each(values["kernel_size"], n), each(values["padding"], n)
    stride = each(values["stride"] or kernel, n)
    dilation = each(values.get("dilation", 1), n)
    require(min(*kernel, *stride, *dilation, *x) > 0, "sizes below one")
    require(all(0 <= p <= k // 2 for p, k in zip(padding, kernel, strict=True)), "padding")
    sizes = []
    for size, k, s, p, d in zip(x[1:], kernel, stride, padding, dilation, strict=True):
        room = size + 2 * p - d * (k - 1) - 1
        count = (-(-room // s) if values["ceil_mode"] else room // s) + 1
        if values["ceil_mode"] and (count - 1) * s >= size + p:
            count -= 1  # the last window would lie in the padding
        sizes.append(count)
    require(min(sizes) > 0, "a window larger than its input")
    result = made([*batch, x[0], *sizes], next(iter(values.values())).dtype)
    return (result, made(result.shape, torch.int64)) if "indices" in name else result


def _adaptive_pooling(operator: Any, values: Values) -> Any:
    n = int(operator._schema.name[-2])
    x, batch = _batched(values, n)
    sizes = each(values["output_size"], n)
    require(min(x) > 0, "an empty input")
    result = made([*batch, x[0], *sizes], values["self"].dtype)
    is_max = "max" in operator._schema.name
    return (result, made(result.shape, torch.int64)) if is_max else result


def _upsampling(operator: Any, values: Values) -> Tensor:
    n = next(int(letter) for letter in operator._schema.name if letter.isdigit())
    x = next(iter(values.values()))
    require(x.dim() == n + 2 and min(x.shape[1:]) > 0, f"an input of shape {list(x.shape)}")
    sizes = values["output_size"]
    if sizes is None:
        factors = values["scale_factors"]
        require(len(factors) == n, f"{factors} are not {n} factors")
        sizes = [math.floor(size * f) for size, f in zip(x.shape[2:], factors, strict=True)]
    require(len(sizes) == n and min(sizes) > 0, f"{sizes} are not {n} sizes")
    return made([*x.shape[:2], *sizes], x.dtype)


def _channel_norm(operator: Any, values: Values) -> Tensor:
    """batch_norm, group_norm, instance_norm."""
    x = values["input"]
    require(x.dim() > 1, "an input without channels")
    for name in ("weight", "bias", "running_mean", "running_var"):
        _check_vector(values.get(name), x.shape[1])
    groups = values.get("num_groups", 1)
    require(groups > 0 and x.shape[1] % groups == 0, f"{groups} groups")
    require(x.is_floating_point(), f"a norm of {x.dtype}")
    return made(x.shape, x.dtype)


def _last_axes_norm(operator: Any, values: Values) -> Tensor:
    """layer_norm and rms_norm."""
    x, shape = values["input"], tuple(values["normalized_shape"])
    require(bool(shape) and tuple(x.shape[-len(shape) :]) == shape, f"a norm over {list(shape)}")
    for name in ("weight", "bias"):
        vector = values.get(name)
        require(vector is None or tuple(vector.shape) == shape, f"a {name} for {list(shape)}")
    require(x.is_floating_point(), f"a norm of {x.dtype}")
    return made(x.shape, x.dtype)


def _attention(operator: Any, values: Values) -> Tensor:
    """scaled_dot_product_attention, and ours."""
    q, k, v, mask = list(values.values())[:4]
    require(min(q.dim(), k.dim(), v.dim()) >= 2, "less than two axes")
    full = min(q.numel(), k.numel(), v.numel()) > 0
    require(full or q.shape[:-2] == k.shape[:-2] == v.shape[:-2], "no values, in other batches")
    require(q.is_floating_point(), f"attention of {q.dtype}")
    _check_dtypes(q, k, v)
    require(q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2], "sizes do not fit")
    heads, others = list(q.shape[:-2]), list(k.shape[:-2])
    if values.get("enable_gqa", values.get("gqa")):
        require(len(heads) > 0 < len(others) and others[-1] > 0, "no heads")
        require(heads[-1] % others[-1] == 0 and k.shape[:-2] == v.shape[:-2], "heads do not fit")
        others[-1] = heads[-1]
    batch = broadcast(heads, others, others if others != list(k.shape[:-2]) else v.shape[:-2])
    scores = (*batch, q.shape[-2], k.shape[-2])
    require(mask is None or broadcast(mask.shape, scores) == scores, "the mask does not fit")
    return made([*batch, q.shape[-2], v.shape[-1]], q.dtype)


def _recurrent(operator: Any, values: Values) -> Any:
    """lstm, gru and rnn on padded sequences: nothing here depends on how many steps there are."""
    name = operator._schema.name.removeprefix("aten::")
    check_recurrent(name, *values.values())
    x, states = values["input"], values["hx"]
    states = states if name == "lstm" else [states]
    output = made([*x.shape[:2], (1 + values["bidirectional"]) * states[0].shape[2]], x.dtype)
    return (output, *(made(state.shape, x.dtype) for state in states))


_DIGITS = ("1d", "2d", "3d")
RULES: dict[str, Rule] = {
    **{f"{name}{d}": _convolution for name in ("conv", "conv_transpose") for d in _DIGITS},
    "convolution": _convolution,
    "linear": _linear,
    "matmul": _product,
    **dict.fromkeys(_RANKS, _product_of_ranks),
    **dict.fromkeys(("addmm", "baddbmm"), _product_and_sum),
    "einsum": _einsum,
    **{f"{kind}_pool{d}": _pooling for kind in ("max", "avg") for d in _DIGITS},
    "max_pool2d_with_indices": _pooling,
    **{f"adaptive_{kind}_pool{d}": _adaptive_pooling for kind in ("avg", "max") for d in _DIGITS},
    **dict.fromkeys(
        (
            "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d "
            "upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d "
            "_upsample_nearest_exact2d _upsample_bilinear2d_aa"
        ).split(),
        _upsampling,
    ),
    **dict.fromkeys(("batch_norm", "group_norm", "instance_norm"), _channel_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), _last_axes_norm),
    **dict.fromkeys(("scaled_dot_product_attention", "octavo.attention"), _attention),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
}
