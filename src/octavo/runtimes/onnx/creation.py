"""Operators that make tensors out of numbers, and the triangles that masks are made of."""

from __future__ import annotations

from typing import Any

from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.runtimes.onnx.sizes import scalar, sizes
from octavo.runtimes.onnx.writer import Converter, Writer


def _filled(value: Any = None) -> Converter:
    """A tensor of one number: this one, or the one that the operator takes."""

    def convert(w: Writer, node: Node) -> Any:
        given = arguments(node)
        number = given.get("fill_value", given.get("value")) if value is None else value
        return w.op("Expand", scalar(w, number, w.meta(node).dtype), _shape(w, node))

    return convert


def _shape(w: Writer, node: Node) -> str:
    """The result's shape: known, computed, or that of the tensor that it is like."""
    known = [size for size in w.meta(node).shape if size is not None]
    if len(known) == w.rank(node):
        return w.ints(known)
    computed = arguments(node).get("size")
    if computed is not None:
        return sizes(w, computed)
    return w.op("Shape", w.read(node.args[0]))


def _arange(w: Writer, node: Node) -> Any:
    given, dtype = arguments(node), w.meta(node).dtype
    bounds = (given.get("start", 0), given["end"], given.get("step", 1))
    return w.op("Range", *(scalar(w, bound, dtype) for bound in bounds))


def _scalar_tensor(w: Writer, node: Node) -> Any:
    return scalar(w, node.args[0], w.meta(node).dtype)


def _triangle(upper: int) -> Converter:
    def convert(w: Writer, node: Node) -> Any:
        x, diagonal = node.args[0], w.constant(arguments(node)["diagonal"], "int64")
        dtype = w.meta(x).dtype
        wide = "int64" if dtype == "bool" else dtype  # ONNX Runtime has no triangles of booleans
        made = w.op("Trilu", w.read_as(x, wide), diagonal, upper=upper)
        return w.cast(made, wide, dtype)

    return convert


CONVERTERS: dict[str, Converter] = {
    **dict.fromkeys(
        "zeros zeros_like new_zeros zero empty empty_like new_empty".split(), _filled(0)
    ),
    **dict.fromkeys(["ones", "ones_like", "new_ones"], _filled(1)),
    **dict.fromkeys(["full", "full_like", "new_full", "fill"], _filled()),
    "arange": _arange,
    "scalar_tensor": _scalar_tensor,
    "tril": _triangle(0),
    "triu": _triangle(1),
}
