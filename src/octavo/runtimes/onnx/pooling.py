"""Pooling and resizing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from octavo.errors import ExportError
from octavo.graph.graph import Node, Ref
from octavo.graph.operators import arguments
from octavo.runtimes.onnx import quantization
from octavo.runtimes.onnx.layers import each
from octavo.runtimes.onnx.sizes import axis_of, joined, shape, sizes
from octavo.runtimes.onnx.writer import Converter, Writer, fenced, kept_apart


def _max_pool(dims: int) -> Converter:
    def convert(w: Writer, node: Node) -> Any:
        dilations = each(arguments(node)["dilation"], dims)
        windows = _windows(w, node, dilations)
        return w.op("MaxPool", w.read(node.args[0]), dilations=dilations, **windows)

    return convert


def _max_pool_with_places(w: Writer, node: Node) -> Any:
    """Only the values: ONNX counts places otherwise."""
    return [_max_pool(2)(w, node), ""]


def _average_pool(dims: int) -> Converter:
    def convert(w: Writer, node: Node) -> Any:
        given, windows = arguments(node), _windows(w, node, [1] * dims)
        if given.get("divisor_override"):
            raise ExportError(
                f"{node.name}: {node.op} with a divisor of its own has no ONNX form; multiply "
                "after it"
            )
        before, behind = windows["pads"][:dims], windows["pads"][dims:]
        counted = bool(given["count_include_pad"] and any(before))
        x = node.args[0]
        # OpenVINO pads integers with zeros; and what ceil_mode adds behind is never counted.
        if counted and (before != behind or quantization.zero_point_of(w, x)):
            lead = [0] * (w.rank(x) - dims)
            pads = w.ints([*lead, *before, *lead, *before])
            added = [b - a for a, b in zip(before, behind, strict=True)]
            inner = windows | {"pads": [0] * dims + added}
            return w.op("AveragePool", quantization.padded(w, x, pads), **inner)
        value = fenced(w, x) if counted else w.read(x)
        return w.op("AveragePool", value, count_include_pad=int(counted), **windows)

    return convert


def _windows(w: Writer, node: Node, dilations: list[int]) -> dict[str, Any]:
    """ONNX's attributes of where windows lie.

    ``ceil_mode`` is written as padding behind: runtimes and onnx's own shape inference do not agree
    on whether a window may begin in the padding.
    """
    given, dims = arguments(node), len(dilations)
    kernel, before = each(given["kernel_size"], dims), each(given["padding"], dims)
    strides = each(given["stride"], dims) if given["stride"] else kernel
    behind = before
    if given["ceil_mode"]:
        read, wanted = (w.meta(ref).shape[-dims:] for ref in (node.args[0], node))
        reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        if None in read:
            # As many windows as there are, of which none begins in the padding behind.
            windows = zip(before, strides, reach, strict=True)
            behind = [min(p + stride, r) - 1 for p, stride, r in windows]
            return {"kernel_shape": kernel, "strides": strides, "pads": before + behind}
        behind = [
            max(p, ((after or 0) - 1) * stride + r - (size or 0) - p)
            for p, after, stride, r, size in zip(before, wanted, strides, reach, read, strict=True)
        ]
    return {"kernel_shape": kernel, "strides": strides, "pads": before + behind}


def _adaptive_average(w: Writer, node: Node) -> Any:
    return _adaptive(w, node, "AveragePool", _average_of_windows)


def _adaptive_max(w: Writer, node: Node) -> Any:
    """Only the values: ONNX counts places otherwise."""
    return [_adaptive(w, node, "MaxPool", _largest_of_windows), ""]


def _adaptive(w: Writer, node: Node, kind: str, along: Any) -> str:
    """Over everything, in equal windows, or axis by axis in windows of several sizes."""
    x, wanted = w.read(node.args[0]), list(arguments(node)["output_size"])
    dims = len(wanted)
    read = w.meta(node.args[0]).shape[-dims:]
    if all(size == 1 for size in wanted):
        return _global(w, kind, x, dims)
    before = [size for size in read if size is not None]
    if len(before) < dims:
        rank = w.rank(node.args[0])
        for axis, count in zip(range(rank - dims, rank), wanted, strict=True):
            if not _is_size_of(w, node.args[0], axis, count):
                x = _in_windows(w, x, axis, count, _REDUCTIONS[kind])
        return x
    if all(b % size == 0 for b, size in zip(before, wanted, strict=True)):
        kernel = [b // size for b, size in zip(before, wanted, strict=True)]
        return w.op(kind, x, kernel_shape=kernel, strides=kernel)
    for axis, b, size in zip(range(-dims, 0), before, wanted, strict=True):
        x = along(w, x, w.rank(node.args[0]) + axis, -axis - 1, _members(b, size))
    return x


def _is_size_of(w: Writer, x: Ref, axis: int, count: Any) -> bool:
    """Whether an axis is as long as it was before: what ``None`` means.

    Raises:
        ExportError: it is to be of another computed size.
    """
    if not isinstance(count, Ref):
        return False
    maker = w.producer(count)
    if maker is None or maker.short_op != "sym_size" or maker.args[0] != x:
        raise ExportError(f"{count.name!r}, a computed number of windows, has no ONNX form")
    return axis_of(w, x, maker.args[1]) == axis


_REDUCTIONS = {"AveragePool": "ReduceMean", "MaxPool": "ReduceMax"}


def _in_windows(w: Writer, x: str, axis: int, count: int, reduction: str) -> str:
    """An axis of any size in so many windows, each reduced to one."""
    length = w.op("Shape", x, start=axis, end=axis + 1)
    parts = []
    for index in range(count):
        # From the floor of index / count of the length to the ceiling of (index + 1) / count.
        start = w.op("Div", w.op("Mul", length, w.ints([index])), w.ints([count]))
        behind = w.op("Add", w.op("Mul", length, w.ints([index + 1])), w.ints([count - 1]))
        end = w.op("Div", behind, w.ints([count]))
        part = w.op("Slice", x, start, end, w.ints([axis]))
        parts.append(w.op(reduction, part, w.ints([axis]), keepdims=1))
    joined: str = w.op("Concat", *parts, axis=axis)
    return kept_apart(w, joined) if reduction == "ReduceMax" else joined


def _global(w: Writer, kind: str, x: str, dims: int) -> str:
    """Of images: in one dimension OpenVINO's integers read memory that nobody wrote."""
    if dims == 1:
        x = w.op("Unsqueeze", x, w.ints([2]))
    pooled = w.op(f"Global{kind}", x)
    if kind == "MaxPool":
        pooled = kept_apart(w, pooled)
    if dims == 1:
        pooled = w.op("Squeeze", pooled, w.ints([2]))
    return pooled


def _members(before: int, wanted: int) -> list[list[int]]:
    """For each window of an axis, what it holds; all are filled up with -1 to one length."""
    windows = [
        list(range(i * before // wanted, math.ceil((i + 1) * before / wanted)))
        for i in range(wanted)
    ]
    longest = max(map(len, windows))
    return [window + [-1] * (longest - len(window)) for window in windows]


def _largest_of_windows(w: Writer, x: str, axis: int, behind: int, members: Any) -> str:
    places = [[place if place >= 0 else window[0] for place in window] for window in members]
    parts = w.op("Gather", x, w.constant(places, "int64"), axis=axis)
    return kept_apart(w, w.op("ReduceMax", parts, w.ints([axis + 1]), keepdims=0))


def _average_of_windows(w: Writer, x: str, axis: int, behind: int, members: Any) -> str:
    places = np.array(members)
    held = places >= 0
    weights = (held / held.sum(1, keepdims=True)).reshape(*places.shape, *[1] * behind)
    parts = w.op("Gather", x, w.constant(places * held, "int64"), axis=axis)
    weighted = w.op("Mul", parts, w.constant(weights, "float32"))
    return w.op("ReduceSum", weighted, w.ints([axis + 1]), keepdims=0)


def _resize(mode: str, **how: Any) -> Converter:
    """Which place of the input a place of the result reads, as torch has it, is said in ``how`` or
    by the operator's ``align_corners``.
    """

    def convert(w: Writer, node: Node) -> Any:
        aligned = arguments(node).get("align_corners", False)
        places = "align_corners" if aligned else "half_pixel"
        return _resized(w, node, mode=mode, **{"coordinate_transformation_mode": places, **how})

    return convert


_nearest = _resize("nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
_linear = _resize("linear")


def _resized(w: Writer, node: Node, **how: Any) -> str:
    """By factors where they are given, since torch uses those, else to a size."""
    x, given = node.args[0], arguments(node)
    factors = given.get("scale_factors") or [
        given[name] for name in ("scales_d", "scales_h", "scales_w", "scales") if given.get(name)
    ]
    dims = w.rank(x) - 2
    if len(factors) == dims:
        scales = w.constant([1.0, 1.0, *factors], "float32")
        return w.op("Resize", w.read(x), "", scales, **how)
    known = w.meta(node).shape[2:]
    sides = given["output_size"] if None in known else known
    # All sizes, since not every runtime knows `axes` here.
    wanted = joined(w, shape(w, x, 0, 2), sizes(w, sides))
    return w.op("Resize", w.read(x), "", "", wanted, **how)


CONVERTERS: dict[str, Converter] = {
    **{f"max_pool{dims}d": _max_pool(dims) for dims in (1, 2, 3)},
    "max_pool2d_with_indices": _max_pool_with_places,
    **{f"avg_pool{dims}d": _average_pool(dims) for dims in (1, 2, 3)},
    **{f"adaptive_avg_pool{dims}d": _adaptive_average for dims in (1, 2, 3)},
    **{f"adaptive_max_pool{dims}d": _adaptive_max for dims in (1, 2, 3)},
    **{f"upsample_nearest{dims}d": _nearest for dims in (1, 2, 3)},
    "_upsample_nearest_exact2d": _resize("nearest", nearest_mode="round_prefer_ceil"),
    "upsample_linear1d": _linear,
    "upsample_bilinear2d": _linear,
    "upsample_trilinear3d": _linear,
    "upsample_bicubic2d": _resize("cubic", cubic_coeff_a=-0.75),
}
