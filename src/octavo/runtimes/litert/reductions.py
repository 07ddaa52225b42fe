"""Sums, means and extremes over axes.

Tested in tests/runtimes/litert/test_elementwise.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from octavo.errors import ExportError
from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.runtimes.litert.elementwise import cast, computed, operands
from octavo.runtimes.litert.pooling import each_of
from octavo.runtimes.litert.values import FLOAT, Form, Value, channels_last
from octavo.runtimes.litert.writer import Converter, Writer


def _axes(node: Node, rank: int) -> list[int]:
    dims = arguments(node).get("dim")
    given = range(rank) if dims is None or dims == [] else each_of(dims)
    return [int(dim) % rank for dim in given]


def _reduced(kind: str) -> Converter:
    def write(w: Writer, node: Node) -> Value:
        ref = node.args[0]
        rank, keeps = len(w.shape(ref)), bool(arguments(node).get("keepdim", False))
        axes = _axes(node, rank)
        x = w.read(ref)
        if x.last and not keeps and rank - len(axes) > 2:  # the axes left have another order
            x = w.read(ref, last=False)
        inputs = [x, w.ints([x.axis(axis) for axis in axes])]
        last, shape = x.last and keeps, w.shape(node)
        if x.last and not keeps and rank - len(axes) == 2 and 1 not in axes and 0 in axes:
            x = w.read(ref, last=False)
            inputs = [x, w.ints(axes)]
        sizes = channels_last(shape) if last else shape
        return w.op(kind, inputs, sizes, w.form(node), "ReducerOptions", last=last, keepDims=keeps)

    return write


def _arg(kind: str, options: str) -> Converter:
    def write(w: Writer, node: Node) -> Value:
        ref, given = node.args[0], arguments(node)
        x, rank = w.read_floats(ref, last=False), len(w.shape(ref))
        dim = given.get("dim")
        shape = _left(w.shape(ref), _axes(node, rank), _keeps(node))
        if dim is None:
            x, dim, rank = w.reshaped(x, [int(np.prod(x.shape))]), 0, 1
        thin = [size for axis, size in enumerate(x.shape) if axis != int(dim) % rank]
        made = w.op(
            kind,
            [x, w.ints(int(dim) % rank)],
            thin,
            Form("int64"),
            options,
            outputType=_INT64,
        )
        return w.reshaped(made, shape)

    return write


_INT64 = 4  # of the schema's types


def _extreme(kind: str, of_two: str, arg: Converter) -> Converter:
    """The largest or least values: of all, of an axis with their places, or of two tensors."""

    def write(w: Writer, node: Node) -> Value:
        overload = node.op.split(".")[2]
        if overload == "other":
            inputs = operands(w, node, *node.args[:2])
            return computed(w, node, of_two, inputs, "MaximumMinimumOptions")
        if overload == "default":
            return _reduced(kind)(w, node)
        if overload != "dim":
            raise ExportError(f"its overload {overload!r} has none in LiteRT")
        x = w.read_floats(node.args[0], last=False)
        axes, keeps = _axes(node, len(x.shape)), _keeps(node)
        shape = _left(x.shape, axes, keeps)
        made = w.op(kind, [x, w.ints(axes)], shape, x.form, "ReducerOptions", keepDims=keeps)
        w.keep(w.result_of(node.name, 0), made)
        if _reads_part(w, node, 1):
            w.keep(w.result_of(node.name, 1), arg(w, node))
        return made

    return write


def _left(sizes: Sequence[int], axes: Sequence[int], keeps: bool) -> list[int]:
    """The sizes of a result that is of some axes."""
    if keeps:
        return [1 if axis in axes else size for axis, size in enumerate(sizes)]
    return [size for axis, size in enumerate(sizes) if axis not in axes]


def _keeps(node: Node) -> bool:
    return bool(arguments(node).get("keepdim", False))


def _reads_part(w: Writer, node: Node, index: int) -> bool:
    return any(user.args[1] == index for user in w.graph.users[node.name])


def _topk(w: Writer, node: Node) -> Value:
    given, shape = arguments(node), w.shape(node.args[0])
    if not given["largest"]:
        raise ExportError("it looks for the least values; LiteRT's TOPK_V2 for the largest")
    rank, count = len(shape), int(given["k"])
    dim = int(given["dim"]) % rank
    order = [*(axis for axis in range(rank) if axis != dim), dim]
    x = w.transposed(w.read_floats(node.args[0], last=False), order)
    sizes = [*x.shape[:-1], count]
    forms = [FLOAT, Form("int32")]
    found = w.ops("TOPK_V2", [x, w.ints(count)], [sizes, sizes], forms, "TopKV2Options")
    back = [order.index(axis) for axis in range(rank)]
    values, places = (w.transposed(value, back) for value in found)
    w.keep(w.result_of(node.name, 0), values)
    w.keep(w.result_of(node.name, 1), cast(w, places, "int64"))
    return values


def _cumsum(w: Writer, node: Node) -> Value:
    x, dim = w.read_floats(node.args[0], last=False), int(arguments(node)["dim"])
    axis = w.ints(dim % len(x.shape))
    return w.op("CUMSUM", [x, axis], x.shape, w.form(node), "CumsumOptions")


def _vector_norm(w: Writer, node: Node) -> Value:
    order = float(arguments(node)["ord"])
    if order not in (1, 2):
        raise ExportError(f"it is of order {order:g}; those of order 1 and 2 have one")
    x = w.read_floats(node.args[0], last=False)
    axes, shape = _axes(node, len(x.shape)), w.shape(node)
    if order == 2:
        return _length(w, x, axes, shape, _keeps(node))
    sizes = w.op("ABS", [x], x.shape, FLOAT, "AbsOptions")
    return w.op("SUM", [sizes, w.ints(axes)], shape, FLOAT, "ReducerOptions", keepDims=_keeps(node))


def _length(w: Writer, x: Value, axes: list[int], shape: Any, keeps: bool) -> Value:
    return w.op("SQRT", [_dot(w, x, x, axes, shape, keeps)], shape, FLOAT)


def _dot(w: Writer, x: Value, y: Value, axes: list[int], shape: Any, keeps: bool) -> Value:
    sizes = np.broadcast_shapes(x.shape, y.shape)
    products = w.op("MUL", [x, y], sizes, FLOAT, "MulOptions")
    return w.op("SUM", [products, w.ints(axes)], shape, FLOAT, "ReducerOptions", keepDims=keeps)


def _cosine_similarity(w: Writer, node: Node) -> Value:
    given, shape = arguments(node), w.shape(node)
    x, y = (w.read_floats(given[name], last=False) for name in ("x1", "x2"))
    if x.shape != y.shape:
        raise ExportError(f"its tensors have other shapes, {list(x.shape)} and {list(y.shape)}")
    axes, least = _axes(node, len(x.shape)), w.constant(np.float32(given["eps"]), FLOAT, "eps")
    lengths = [_length(w, value, axes, shape, False) for value in (x, y)]
    one, other = (
        w.op("MAXIMUM", [length, least], shape, FLOAT, "MaximumMinimumOptions")
        for length in lengths
    )
    area = w.op("MUL", [one, other], shape, FLOAT, "MulOptions")
    return w.op("DIV", [_dot(w, x, y, axes, shape, False), area], shape, FLOAT, "DivOptions")


def squared_mean(w: Writer, x: Value, axes: list[int], shape: Any) -> Value:
    """The mean of squares over axes, which stay as sizes of one."""
    squares = w.op("MUL", [x, x], x.shape, x.form, "MulOptions")
    inputs = [squares, w.ints(axes)]
    return w.op("MEAN", inputs, shape, x.form, "ReducerOptions", keepDims=True)


_ARGMAX, _ARGMIN = _arg("ARG_MAX", "ArgMaxOptions"), _arg("ARG_MIN", "ArgMinOptions")
CONVERTERS: dict[str, Converter] = {
    "mean": _reduced("MEAN"),
    "sum": _reduced("SUM"),
    "prod": _reduced("REDUCE_PROD"),
    "amax": _reduced("REDUCE_MAX"),
    "amin": _reduced("REDUCE_MIN"),
    "any": _reduced("REDUCE_ANY"),
    "all": _reduced("REDUCE_ALL"),
    "argmax": _ARGMAX,
    "argmin": _ARGMIN,
    "max": _extreme("REDUCE_MAX", "MAXIMUM", _ARGMAX),
    "min": _extreme("REDUCE_MIN", "MINIMUM", _ARGMIN),
    "topk": _topk,
    "cumsum": _cumsum,
    "linalg_vector_norm": _vector_norm,
    "cosine_similarity": _cosine_similarity,
}
