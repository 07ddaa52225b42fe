"""Sums, means and extremes over axes.

Tested in tests/runtimes/litert/test_elementwise.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.runtimes.litert.pooling import each_of
from octavo.runtimes.litert.values import Form, Value, channels_last
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
        dim, shape = given.get("dim"), w.shape(node)
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


def squared_mean(w: Writer, x: Value, axes: list[int], shape: Any) -> Value:
    """The mean of squares over axes, which stay as sizes of one."""
    squares = w.op("MUL", [x, x], x.shape, x.form, "MulOptions")
    inputs = [squares, w.ints(axes)]
    return w.op("MEAN", inputs, shape, x.form, "ReducerOptions", keepDims=True)


CONVERTERS: dict[str, Converter] = {
    "mean": _reduced("MEAN"),
    "sum": _reduced("SUM"),
    "prod": _reduced("REDUCE_PROD"),
    "amax": _reduced("REDUCE_MAX"),
    "amin": _reduced("REDUCE_MIN"),
    "any": _reduced("REDUCE_ANY"),
    "all": _reduced("REDUCE_ALL"),
    "argmax": _arg("ARG_MAX", "ArgMaxOptions"),
    "argmin": _arg("ARG_MIN", "ArgMinOptions"),
}
