"""Pooling, and means of images.

Tested in tests/runtimes/litert/test_pooling.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from octavo.errors import ExportError
from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.runtimes.litert.affine import summed
from octavo.runtimes.litert.flatbuffer import SAME, VALID
from octavo.runtimes.litert.layers import as_graph_has_it, as_image, image_shape
from octavo.runtimes.litert.values import Form, Value
from octavo.runtimes.litert.windows import Windows, padded
from octavo.runtimes.litert.writer import Converter, Writer

_LOWEST = {"float32": float(np.finfo(np.float32).min), "int8": -128, "int16": -32768}


def _pooled(w: Writer, node: Node, kind: str, x: Value, padding: int, windows: Windows) -> Value:
    shape = image_shape(w, node)
    made = w.op(
        kind,
        [x],
        shape,
        w.form(node),
        "Pool2DOptions",
        last=True,
        padding=padding,
        strideH=windows.strides[0],
        strideW=windows.strides[1],
        filterHeight=windows.size[0],
        filterWidth=windows.size[1],
        fusedActivationFunction=w.activation(),
    )
    return as_graph_has_it(w, node, made)


def _max_pool(w: Writer, node: Node) -> Value:
    given = arguments(node)
    if set(each_of(given["dilation"])) != {1}:
        raise ExportError("it has a dilation; LiteRT's pooling has none")
    size = given["kernel_size"]
    windows = Windows.of(size, given["stride"] or size, given["padding"])
    image = as_image(w, given["self"])
    filler = _LOWEST[image.form.dtype]
    result = image_shape(w, node)[1:3]
    if windows.is_same(image.shape[1:3], result):  # which reads the image's own values alone
        return _pooled(w, node, "MAX_POOL_2D", image, SAME, windows)
    x, padding = padded(w, image, windows, result, filler)
    return _pooled(w, node, "MAX_POOL_2D", x, padding, windows)


def each_of(value: Any) -> Sequence[int]:
    """One number or several, as several."""
    return value if isinstance(value, list | tuple) else [value]


def _avg_pool(w: Writer, node: Node) -> Value:
    given = arguments(node)
    size = given["kernel_size"]
    windows = Windows.of(size, given["stride"] or size, given["padding"])
    image, result = as_image(w, given["self"]), image_shape(w, node)[1:3]
    divisor = given.get("divisor_override") or windows.size[0] * windows.size[1]
    overhangs = any(
        behind > before
        for behind, before in zip(
            windows.behind(image.shape[1:3], result), windows.before, strict=True
        )
    )
    pads = any(windows.before) or overhangs
    if not pads or (given["count_include_pad"] and not overhangs):
        return _average_of_all(w, node, image, windows, 1 / divisor)
    counts = given["count_include_pad"] and any(windows.before)
    is_other = counts or given.get("divisor_override") is not None
    if w.on_integers or is_other or not windows.is_same(image.shape[1:3], result):
        raise ExportError("its averages leave out the padding, in a way that LiteRT's do not")
    return _pooled(w, node, "AVERAGE_POOL_2D", image, SAME, windows)


def _average_of_all(w: Writer, node: Node, image: Value, windows: Windows, factor: float) -> Value:
    """Averages that count their padding.

    On integers they are a depthwise convolution, which rounds once: LiteRT's pooling of integers
    cannot change their scale.
    """
    result = image_shape(w, node)
    x, padding = padded(w, image, windows, result[1:3])
    count = windows.size[0] * windows.size[1]
    if not w.on_integers and padding == VALID and abs(factor * count - 1) < 1e-9:
        return _pooled(w, node, "AVERAGE_POOL_2D", x, VALID, windows)
    made = summed(w, x, result, w.form(node), factor, 0.0, windows, padding)
    return as_graph_has_it(w, node, made)


def _adaptive_avg_pool(w: Writer, node: Node) -> Value:
    image, result = as_image(w, arguments(node)["self"]), image_shape(w, node)
    sizes = image.shape[1:3]
    if result[1:3] == (1, 1):
        made = averaged(w, image, [1, 2], result, w.form(node), keeps=True)
        return as_graph_has_it(w, node, made)
    high, wide = (_alike(size, out) for size, out in zip(sizes, result[1:3], strict=True))
    if high is None or wide is None:
        raise ExportError(
            f"it makes {list(result[1:3])} of {list(sizes)}, which windows of one size do not"
        )
    windows = Windows.of((high[0], wide[0]), (high[1], wide[1]), 0)
    return _average_of_all(w, node, image, windows, 1 / (high[0] * wide[0]))


def _alike(size: int, count: int) -> tuple[int, int] | None:
    """Size and stride of the windows that torch lays over an axis; ``None`` if they differ."""
    starts = [index * size // count for index in range(count)]
    ends = [-(-(index + 1) * size // count) for index in range(count)]
    sizes = {end - start for start, end in zip(starts, ends, strict=True)}
    strides = {after - start for start, after in pairwise(starts)} or {size}
    return (sizes.pop(), strides.pop()) if len(sizes) == len(strides) == 1 else None


def averaged(
    w: Writer, x: Value, axes: Sequence[int], shape: Sequence[int], form: Form, *, keeps: bool
) -> Value:
    """The mean over axes of the file's tensor."""
    inputs = [x, w.ints(list(axes))]
    last = x.last and keeps
    return w.op("MEAN", inputs, shape, form, "ReducerOptions", last=last, keepDims=keeps)


CONVERTERS: dict[str, Converter] = {
    "max_pool1d": _max_pool,
    "max_pool2d": _max_pool,
    "avg_pool1d": _avg_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool1d": _adaptive_avg_pool,
    "adaptive_avg_pool2d": _adaptive_avg_pool,
}
