"""Operators that pick parts of a tensor, split it, or write into it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from octavo.errors import ExportError
from octavo.graph.graph import Node, Ref
from octavo.graph.operators import arguments
from octavo.runtimes.onnx.sizes import TO_THE_END, axis_of, length_of, scalar, size, sizes
from octavo.runtimes.onnx.writer import Converter, Writer


def _slice(w: Writer, node: Node) -> Any:
    given = arguments(node)
    start = 0 if given["start"] is None else given["start"]
    end = TO_THE_END if given["end"] is None else given["end"]
    return _part(w, node.args[0], given["dim"], size(w, start), size(w, end), given["step"])


def _narrow(w: Writer, node: Node) -> Any:
    x, axis, start, length = node.args
    begin = size(w, start)
    return _part(w, x, axis, begin, w.op("Add", begin, size(w, length)))


def _part(w: Writer, x: Ref, axis: int, start: str, end: str, step: int = 1) -> str:
    axes = w.ints([axis_of(w, x, axis)])
    return w.op("Slice", w.read(x), start, end, axes, w.ints([step]))


def _select(w: Writer, node: Node) -> Any:
    x, axis, index = node.args
    return w.op("Gather", w.read(x), scalar(w, index, "int64"), axis=axis_of(w, x, axis))


def _split(w: Writer, node: Node) -> Any:
    """Into parts of given sizes, or of one size but for the last."""
    given = arguments(node)
    parts: Any = given.get("split_sizes", given.get("split_size"))
    if isinstance(parts, int):
        length = w.meta(node.args[0]).shape[axis_of(w, node.args[0], given["dim"])]
        if length is None:
            return _in_slices(w, node, w.ints([parts]), given["dim"])
        parts = [min(parts, length - start) for start in range(0, length, parts)]
    return _in_parts(w, node, parts, given["dim"])


def _chunk(w: Writer, node: Node) -> Any:
    """At most so many parts, of one size but for the last."""
    given = arguments(node)
    length = w.meta(node.args[0]).shape[axis_of(w, node.args[0], given["dim"])]
    if length is None:
        whole, count = _whole(w, node.args[0], given["dim"]), given["chunks"]
        each = w.op("Div", w.op("Add", whole, w.ints([count - 1])), w.ints([count]))
        return _in_slices(w, node, each, given["dim"])
    each = math.ceil(length / given["chunks"])
    parts = [min(each, length - start) for start in range(0, length, each)]
    return _in_parts(w, node, parts, given["dim"])


def _in_parts(w: Writer, node: Node, parts: list[Any], axis: int) -> list[str]:
    x = node.args[0]
    if len(parts) == 1:
        return [w.read(x)]
    place = axis_of(w, x, axis)
    return w.ops("Split", w.read(x), sizes(w, parts), outputs=len(parts), axis=place)


def _whole(w: Writer, x: Ref, axis: int) -> str:
    """The size of an axis when the model runs."""
    return length_of(w, w.read(x), axis_of(w, x, axis))


def _in_slices(w: Writer, node: Node, each: str, axis: int) -> list[str]:
    """As many parts as are read, of one size but for the last."""
    readers = w.graph.users[node.name]
    count = max((user.args[1] for user in readers if user.op == "python.getitem"), default=0) + 1
    ends = [w.op("Mul", each, w.ints([index])) for index in range(count + 1)]
    return [_part(w, node.args[0], axis, start, end) for start, end in pairwise(ends)]


def _unbind(w: Writer, node: Node) -> Any:
    x, axis = node.args[0], arguments(node)["dim"]
    value, place = w.read(x), axis_of(w, x, axis)
    count = _length(w, node, axis)
    return [w.op("Gather", value, w.constant(i, "int64"), axis=place) for i in range(count)]


def _length(w: Writer, node: Node, axis: int) -> int:
    """Size of an axis that is taken apart.

    Raises:
        ExportError: it is open.
    """
    length = w.meta(node.args[0]).shape[axis_of(w, node.args[0], axis)]
    if length is None:
        raise ExportError(
            f"{node.name}: {node.op} splits an axis whose size depends on the batch; take "
            "another axis, or slice"
        )
    return length


def getitem(w: Writer, node: Node) -> Any:
    """One of the tensors that a node gives."""
    source, index = node.args
    value = w.values[source.name][index]
    if value == "":
        raise ExportError(
            f"{node.name}: result {index} of {source.name!r} has no ONNX form; do without it"
        )
    return value


def _flip(w: Writer, node: Node) -> Any:
    x, axes = node.args
    count = len(axes)
    return w.op(
        "Slice",
        w.read(x),
        w.ints([-1] * count),
        w.ints([-TO_THE_END] * count),
        w.ints([axis_of(w, x, axis) for axis in axes]),
        w.ints([-1] * count),
    )


def _roll(w: Writer, node: Node) -> Any:
    """Each axis is cut in two, which change places."""
    given = arguments(node)
    x, shifts, axes = given["self"], given["shifts"], given["dims"]
    if not axes:
        raise ExportError(f"{node.name}: {node.op} without axes has no ONNX form; name its axes")
    value, shape = w.read(x), w.meta(x).shape
    for shift, axis in zip(shifts, axes, strict=True):
        place = axis_of(w, x, axis)
        length = shape[place]
        if length is None:
            cut = w.op("Mod", w.ints([-shift]), length_of(w, value, place))
        else:
            cut = w.ints([-shift % length])
        end = w.op("Slice", value, cut, w.ints([TO_THE_END]), w.ints([place]))
        start = w.op("Slice", value, w.ints([0]), cut, w.ints([place]))
        value = w.op("Concat", end, start, axis=place)
    return value


def _gather(w: Writer, node: Node) -> Any:
    """Of the other axes as much is read as there are indices, which not every runtime does."""
    x, axis, index = node.args[:3]
    value, indices, place = w.read(x), w.read_as(index, "int64"), axis_of(w, x, axis)
    pairs = enumerate(zip(w.meta(x).shape, w.meta(index).shape, strict=True))
    for other, (read, wanted) in pairs:
        if other != place and read != wanted:
            end = length_of(w, indices, other)
            value = w.op("Slice", value, w.ints([0]), end, w.ints([other]))
    return w.op("GatherElements", value, indices, axis=place)


def _index_select(w: Writer, node: Node) -> Any:
    x, axis, index = node.args
    return w.op("Gather", w.read(x), w.read(index), axis=axis_of(w, x, axis))


def _index(w: Writer, node: Node) -> Any:
    """Indexing with tensors: one, or several that are broadcast against each other.

    Axes of the indices lie where the indexed ones lay if these were neighbours, else in front.
    """
    x, indices = node.args
    chosen = [axis for axis, index in enumerate(indices) if index is not None]
    if any(w.meta(indices[axis]).dtype in ("bool", "uint8") for axis in chosen):
        raise ExportError(
            f"{node.name}: {node.op} with a mask gives a size that is not known; use torch.where"
        )
    first = chosen[0]
    if len(chosen) == 1:
        return w.op("Gather", w.read(x), w.read(indices[first]), axis=first)
    others = [axis for axis in range(w.rank(x)) if axis not in chosen]
    value = w.op("Transpose", w.read(x), perm=[*chosen, *others])
    value = w.op("GatherND", value, _places(w, [indices[axis] for axis in chosen]))
    if chosen != list(range(first, first + len(chosen))):
        return value
    front = w.rank(node) - len(others)  # axes of the indices
    axes = list(range(w.rank(node)))
    order = axes[front : front + first] + axes[:front] + axes[front + first :]
    return w.op("Transpose", value, perm=order)


def _places(w: Writer, refs: list[Ref]) -> str:
    """Indices broadcast against each other, side by side in a last axis."""
    values = [w.read_as(ref, "int64") for ref in refs]
    total = values[0]
    for value in values[1:]:
        total = w.op("Add", total, value)
    shape = w.op("Shape", total)  # of a sum, which is what broadcasting gives
    parts = [w.op("Unsqueeze", w.op("Expand", value, shape), w.ints([-1])) for value in values]
    return w.op("Concat", *parts, axis=-1)


def _scatter(w: Writer, node: Node) -> Any:
    if node.op.split(".")[2] in ("reduce", "value_reduce"):
        raise ExportError(f"{node.name}: {node.op} has no ONNX form; use scatter_add")
    x, axis, index, source = node.args[:4]
    indices, dtype = w.read_as(index, "int64"), w.meta(node).dtype
    if isinstance(source, Ref):  # of which as much is read as there are indices
        start, end = w.ints([0] * w.rank(index)), w.op("Shape", indices)
        updates = w.op("Slice", w.read_as(source, dtype), start, end)
    else:
        updates = w.op("Expand", w.constant(source, dtype), w.op("Shape", indices))
    return w.op(
        "ScatterElements",
        w.read(x),
        indices,
        updates,
        axis=axis_of(w, x, axis),
        reduction="add" if node.short_op == "scatter_add" else None,
    )


def _by_rows(w: Writer, node: Node) -> Any:
    """index_add and index_copy: an index for each slice of the source, which is one for each of its
    values.
    """
    given = arguments(node)
    x, source = given["self"], given["source"]
    axis, dtype = axis_of(w, x, given["dim"]), w.meta(node).dtype
    updates = w.read_as(source, dtype)
    if given.get("alpha", 1) != 1:
        updates = w.op("Mul", updates, w.constant(given["alpha"], dtype))
    along = [-1 if place == axis else 1 for place in range(w.rank(source))]
    indices = w.op("Reshape", w.read_as(given["index"], "int64"), w.ints(along))
    return w.op(
        "ScatterElements",
        w.read(x),
        w.op("Expand", indices, w.op("Shape", updates)),
        updates,
        axis=axis,
        reduction="add" if node.short_op == "index_add" else None,
    )


def _slice_scatter(w: Writer, node: Node) -> Any:
    """What lies before, the new part, and what lies behind."""
    given = arguments(node)
    start, end = given["start"] or 0, given["end"]
    if given["step"] != 1:
        raise ExportError(f"{node.name}: {node.op} in steps has no ONNX form; use torch.where")
    end = TO_THE_END if end is None else end
    return _replaced(w, node, given["dim"], w.read(given["src"]), size(w, start), size(w, end))


def _select_scatter(w: Writer, node: Node) -> Any:
    given = arguments(node)
    axis = axis_of(w, node.args[0], given["dim"])
    index = given["index"]
    part = w.op("Unsqueeze", w.read(given["src"]), w.ints([axis]))
    end = TO_THE_END if index == -1 else index + 1
    return _replaced(w, node, axis, part, w.ints([index]), w.ints([end]))


def _replaced(w: Writer, node: Node, axis: int, part: str, start: str, end: str) -> str:
    x = node.args[0]
    before = _part(w, x, axis, w.ints([0]), start)
    behind = _part(w, x, axis, end, w.ints([TO_THE_END]))
    return w.op("Concat", before, part, behind, axis=axis_of(w, x, axis))


CONVERTERS: dict[str, Converter] = {
    "slice": _slice,
    "narrow": _narrow,
    "select": _select,
    **dict.fromkeys("split split_with_sizes unsafe_split unsafe_split_with_sizes".split(), _split),
    **dict.fromkeys(["chunk", "unsafe_chunk"], _chunk),
    "unbind": _unbind,
    "flip": _flip,
    "roll": _roll,
    "gather": _gather,
    "index_select": _index_select,
    "index": _index,
    **dict.fromkeys(["scatter", "scatter_add"], _scatter),
    **dict.fromkeys(["index_add", "index_copy"], _by_rows),
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
}
