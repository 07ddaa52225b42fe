"""Tables whose rows are looked up.

Tested in tests/runtimes/litert/test_tables.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.errors import ExportError
from octavo.graph.graph import Node, Ref
from octavo.graph.operators import arguments
from octavo.graph.qdq import weight_behind
from octavo.runtimes.litert.elementwise import cast
from octavo.runtimes.litert.flatbuffer import Quantization
from octavo.runtimes.litert.values import FLOAT, Form, Value
from octavo.runtimes.litert.writer import Converter, Writer


def _embedding(w: Writer, node: Node) -> Value:
    table, ids = node.args[:2]
    rows = w.shape(ids)
    flat = _flat(w, ids)
    weight = weight_behind(w.graph, table)
    if weight is None or not weight.symmetric or weight.axis != 0 or not weight.signed:
        return gathered(w, w.read_floats(table, last=False), flat, 0, w.shape(node))
    numbers = Quantization(tuple(weight.scale.flatten().tolist()), (0,) * weight.shape[0])
    dtype = "int8" if weight.unpack is None else "int4"
    integers = w.constant(weight.integers.numpy(), Form(dtype, numbers), weight.name)
    found = w.op("EMBEDDING_LOOKUP", [flat, integers], [flat.shape[0], weight.shape[1]], FLOAT)
    return w.reshaped(found, [*rows, weight.shape[1]])


def _flat(w: Writer, ids: Ref) -> Value:
    """Indices in one row, of int32."""
    value = cast(w, w.read_floats(ids, last=False), "int32")
    return w.reshaped(value, [int(np.prod(value.shape))])


def gathered(w: Writer, x: Value, places: Value, axis: int, shape: Any) -> Value:
    """What stands in some places of an axis."""
    made_shape = [*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]]
    made = w.op("GATHER", [x, places], made_shape, x.form, "GatherOptions", axis=axis, batchDims=0)
    return w.reshaped(made, shape)


def _index_select(w: Writer, node: Node) -> Value:
    x, dim, places = node.args[:3]
    axis = int(dim) % len(w.shape(x))
    return gathered(w, w.read(x, last=False), _flat(w, places), axis, w.shape(node))


def _index(w: Writer, node: Node) -> Value:
    """Of a tensor by others: one that picks in one axis, or several of whole numbers."""
    x, places = node.args[:2]
    picking = [(axis, ref) for axis, ref in enumerate(places) if ref is not None]
    if any(w.meta(ref).dtype == "bool" for _, ref in picking):
        raise ExportError("it is indexed by a mask, so that the size of its result is not known")
    value = w.read(x, last=False)
    if len(picking) == 1:
        axis, ref = picking[0]
        own = _wrapped(w, ref, value.shape[axis])
        flat = w.reshaped(own, [int(np.prod(own.shape))])
        return gathered(w, value, flat, axis, w.shape(node))
    if [axis for axis, _ in picking] != list(range(len(picking))):
        raise ExportError("it is indexed in axes that do not stand side by side")
    return _gathered_by_several(w, node, value, [ref for _, ref in picking])


def _gathered_by_several(w: Writer, node: Node, value: Value, refs: list[Any]) -> Value:
    """By places in the first axes, taken together as those in one long axis."""
    sizes, rest = value.shape[: len(refs)], value.shape[len(refs) :]
    shape = np.broadcast_shapes(*(w.shape(ref) for ref in refs))
    place: Value | None = None
    for size, ref in zip(sizes, refs, strict=True):
        own = _wrapped(w, ref, size)
        place = own if place is None else _two(w, "ADD", _two(w, "MUL", place, size), own)
    assert place is not None
    flat = w.reshaped(value, [int(np.prod(sizes)), *rest])
    long = w.reshaped(_broadcast(w, place, shape), [int(np.prod(shape))])
    return gathered(w, flat, long, 0, w.shape(node))


def _wrapped(w: Writer, ref: Any, size: int) -> Value:
    """Places of int32; constant ones that count from the end are counted from the start."""
    constant = w.graph.constant(ref)
    if constant is not None:
        return w.ints(constant.numpy() % size)
    return cast(w, w.read_floats(ref, last=False), "int32")


def _two(w: Writer, kind: str, a: Value, b: Value | int) -> Value:
    other = w.ints(b) if isinstance(b, int) else b
    options = {"ADD": "AddOptions", "MUL": "MulOptions"}[kind]
    shape = np.broadcast_shapes(a.shape, other.shape)
    return w.op(kind, [a, other], shape, Form("int32"), options)


def _broadcast(w: Writer, value: Value, shape: tuple[int, ...]) -> Value:
    if value.shape == shape:
        return value
    inputs = [value, w.ints(shape)]
    return w.op("BROADCAST_TO", inputs, shape, value.form, "BroadcastToOptions")


def _windows(w: Writer, node: Node) -> Value:
    """Windows of an axis, whose places become the last one."""
    given, ref = arguments(node), node.args[0]
    rank, size = len(w.shape(ref)), int(given["size"])
    axis = int(given["dimension"]) % rank
    count, x = w.shape(node)[axis], w.read(ref, last=False)
    places = np.arange(count)[:, None] * int(given["step"]) + np.arange(size)
    shape = [*x.shape[:axis], count, size, *x.shape[axis + 1 :]]
    apart = gathered(w, x, w.ints(places.reshape(-1)), axis, shape)
    order = [place for place in range(rank + 1) if place != axis + 1]
    return w.transposed(apart, [*order, axis + 1])


def _bag(w: Writer, node: Node) -> Value:
    raise ExportError(
        f"bags of rows ({arguments(node)['mode']}) have a length that LiteRT does not know"
    )


CONVERTERS: dict[str, Converter] = {
    "embedding": _embedding,
    "embedding_bag": _bag,
    "index_select": _index_select,
    "index": _index,
    "unfold": _windows,
}
