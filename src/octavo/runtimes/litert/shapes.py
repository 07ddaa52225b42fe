"""Operators that move values, or look at them in another shape.

Tested in tests/runtimes/litert/test_shapes.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from octavo.errors import ExportError
from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.runtimes.litert.pooling import each_of
from octavo.runtimes.litert.rounding import nearest
from octavo.runtimes.litert.values import Value, channels_last, channels_second
from octavo.runtimes.litert.windows import pad
from octavo.runtimes.litert.writer import Converter, Writer


def _reshape(w: Writer, node: Node) -> Value:
    """Any operator that leaves the order of all numbers as it is."""
    ref, shape = node.args[0], w.shape(node)
    before = w.shape(ref)
    if w.is_last(ref) and len(shape) > 2 and shape[:2] == before[:2]:  # height and width as one
        return w.reshaped(w.read(ref, last=True), channels_last(shape), last=True)
    x = w.read(ref)
    if x.last and _moves_nothing(x, channels_second(range(len(x.shape)))):
        return w.reshaped(x, shape)
    return w.reshaped(w.read(ref, last=False), shape)


def _permuted(order: Any) -> Converter:
    """An operator that puts axes in another order, which a function of the node tells."""

    def write(w: Writer, node: Node) -> Value:
        ref = node.args[0]
        rank = len(w.shape(ref))
        axes = [axis % rank for axis in order(node, rank)]
        x = w.read(ref)
        moved = [x.axis(axis) for axis in axes]
        if _moves_nothing(x, channels_last(moved) if rank > 2 else moved):
            return w.transposed(x, channels_last(moved) if rank > 2 else moved, rank > 2)
        return w.transposed(x, moved)

    return write


def _moves_nothing(x: Value, order: Sequence[int]) -> bool:
    moving = [axis for axis in order if x.shape[axis] != 1]
    return moving == sorted(moving)


def _swapped(node: Node, rank: int) -> list[int]:
    axes = list(range(rank))
    one, other = (int(axis) % rank for axis in node.args[1:3])
    axes[one], axes[other] = other, one
    return axes


def _moved(node: Node, rank: int) -> list[int]:
    starts, ends = ([int(a) % rank for a in each_of(arg)] for arg in node.args[1:3])
    left = iter(axis for axis in range(rank) if axis not in starts)
    places = dict(zip(ends, starts, strict=True))
    return [places[axis] if axis in places else next(left) for axis in range(rank)]


def _cat(w: Writer, node: Node) -> Value:
    refs = node.args[0]
    shape, rank = w.shape(node), len(w.shape(node))
    refs = [ref for ref in refs if math.prod(w.shape(ref))]
    last = rank > 2 and any(w.is_last(ref) for ref in refs)
    inputs = [w.read(ref, last=last) for ref in refs]
    axis = int(arguments(node).get("dim", 0)) % rank
    return joined(w, node, inputs, inputs[0].axis(axis), shape, last)


def joined(
    w: Writer, node: Node, inputs: Sequence[Value], axis: int, shape: Sequence[int], last: bool
) -> Value:
    """Values one behind the other in an axis of the file's tensors."""
    return w.op(
        "CONCATENATION",
        list(inputs),
        channels_last(shape) if last else shape,
        w.form(node),
        "ConcatenationOptions",
        last=last,
        axis=axis,
        fusedActivationFunction=w.activation(),
    )


def _stack(w: Writer, node: Node) -> Value:
    shape, dim = w.shape(node), int(arguments(node).get("dim", 0)) % len(w.shape(node))
    thin = [*shape[:dim], 1, *shape[dim + 1 :]]
    inputs = [w.reshaped(w.read(ref, last=False), thin) for ref in node.args[0]]
    return joined(w, node, inputs, dim, shape, last=False)


def part(w: Writer, x: Value, axis: int, start: int, count: int, step: int = 1) -> Value:
    """Some of a value's indices in one axis of the graph's tensor."""
    place = x.axis(axis)
    shape = [count if i == place else size for i, size in enumerate(x.shape)]
    if count == x.shape[place]:
        return x
    begin = [start if i == place else 0 for i in range(len(shape))]
    if step == 1:
        inputs = [x, w.ints(begin), w.ints(shape)]
        return w.op("SLICE", inputs, shape, x.form, "SliceOptions", last=x.last)
    end = [start + (count - 1) * step + 1 if i == place else n for i, n in enumerate(x.shape)]
    steps = [step if i == place else 1 for i in range(len(shape))]
    inputs = [x, w.ints(begin), w.ints(end), w.ints(steps)]
    return w.op("STRIDED_SLICE", inputs, shape, x.form, "StridedSliceOptions", last=x.last)


def _slice(w: Writer, node: Node) -> Value:
    given = arguments(node)
    x, dim = w.read(node.args[0]), int(given["dim"])
    size = w.shape(node.args[0])[dim]
    start, _, step = slice(given["start"], given["end"], given["step"]).indices(size)
    return part(w, x, dim, start, w.shape(node)[dim], step)


def _narrow(w: Writer, node: Node) -> Value:
    x, dim, start, length = node.args[:4]
    size = w.shape(x)[int(dim)]
    return part(w, w.read(x), int(dim), int(start) % size if size else 0, int(length))


def _select(w: Writer, node: Node) -> Value:
    ref, dim, index = node.args[:3]
    size = w.shape(ref)[int(dim)]
    one = part(w, w.read(ref, last=False), int(dim), int(index) % size, 1)
    return w.reshaped(one, w.shape(node))


def _getitem(w: Writer, node: Node) -> Value:
    """One of the tensors that an operator gives; of a split only that part is made."""
    source, index = w.graph.by_name[node.args[0].name], int(node.args[1])
    kept = w.kept(w.result_of(source.name, index))
    if kept is not None:
        return kept
    given = arguments(source)
    ref, dim = source.args[0], int(given.get("dim", 0))
    size = w.shape(ref)[dim]
    if source.short_op == "unbind":
        one = part(w, w.read(ref, last=False), dim, index % size, 1)
        return w.reshaped(one, w.shape(node))
    if source.short_op in _CHUNKS:
        sizes = _sizes_of_parts(source, size)
        index %= len(sizes)
        return part(w, w.read(ref), dim, sum(sizes[:index]), sizes[index])
    raise ExportError(f"it is one of the results of {source.op}, of which LiteRT has no form")


_CHUNKS = ("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk")


def _sizes_of_parts(source: Node, size: int) -> list[int]:
    given = source.args[1]
    if isinstance(given, list | tuple):
        return [int(part) for part in given]
    step = -(-size // int(given)) if "chunk" in source.short_op else int(given)
    return [min(step, size - start) for start in range(0, size, step)]


def _pad(w: Writer, node: Node) -> Value:
    given = arguments(node)
    if given.get("mode", "constant") != "constant":
        return _mirror(w, node, given["mode"])
    x, rank = w.read(node.args[0]), len(w.shape(node))
    sizes = [int(size) for size in given["pad"]]
    around = [[0, 0] for _ in range(rank)]
    for i in range(len(sizes) // 2):
        around[x.axis(rank - 1 - i)] = sizes[2 * i : 2 * i + 2]
    for place, (before, behind) in enumerate(around):  # negative sizes cut
        if min(before, behind) < 0:
            raise ExportError(f"it cuts {min(before, behind)} values off the axis {place}")
    value = float(given.get("value") or 0.0)
    if value == 0:
        return pad(w, x, around, None)
    return pad(w, x, around, value if x.form.quantization is None else nearest(x.form, value))


def _mirror(w: Writer, node: Node, mode: str) -> Value:
    if mode != "reflect":
        raise ExportError(f"it pads by {mode!r}; LiteRT has constant and reflect")
    x, rank, sizes = w.read(node.args[0]), len(w.shape(node)), arguments(node)
    given = [int(size) for size in sizes.get("pad", sizes.get("padding"))]  # type: ignore[union-attr]
    around = [[0, 0] for _ in range(rank)]
    for i in range(len(given) // 2):
        around[x.axis(rank - 1 - i)] = given[2 * i : 2 * i + 2]
    shape = [size + sum(more) for size, more in zip(x.shape, around, strict=True)]
    return w.op(
        "MIRROR_PAD", [x, w.ints(around)], shape, x.form, "MirrorPadOptions", last=x.last, mode=0
    )


def _expand(w: Writer, node: Node) -> Value:
    shape = w.shape(node)
    x = w.read(node.args[0], last=False)
    thin = [1] * (len(shape) - len(x.shape)) + list(x.shape)
    x = w.reshaped(x, thin)
    if x.shape == shape:
        return x
    return w.op("BROADCAST_TO", [x, w.ints(shape)], shape, x.form, "BroadcastToOptions")


def _repeat(w: Writer, node: Node) -> Value:
    times, shape = [int(n) for n in node.args[1]], w.shape(node)
    x = w.read(node.args[0], last=False)
    x = w.reshaped(x, [1] * (len(shape) - len(x.shape)) + list(x.shape))
    return w.op("TILE", [x, w.ints(times)], shape, x.form, "TileOptions")


def _flip(w: Writer, node: Node) -> Value:
    x = w.read(node.args[0])
    for dim in node.args[1]:
        axis = w.ints([x.axis(int(dim))])
        x = w.op("REVERSE_V2", [x, axis], x.shape, x.form, "ReverseV2Options", last=x.last)
    return x


def _roll(w: Writer, node: Node) -> Value:
    given = arguments(node)
    x = w.read(node.args[0])
    dims = each_of(given["dims"])
    if not dims:
        raise ExportError("it rolls a tensor as if that were flat")
    for shift, dim in zip(each_of(given["shifts"]), dims, strict=True):
        size = x.shape[x.axis(int(dim))]
        cut = size - int(shift) % size
        if cut != size:
            parts = [part(w, x, int(dim), cut, size - cut), part(w, x, int(dim), 0, cut)]
            x = joined(w, node, parts, x.axis(int(dim)), w.shape(node), x.last)
    return x


def _pixel_shuffle(w: Writer, node: Node) -> Value:
    """LiteRT's depth to space has the places of a block in front of the channels, torch behind."""
    ref, block = node.args[0], int(node.args[1])
    batch, channels, high, wide = w.shape(ref)
    x = w.read(ref, last=True)
    kept = channels // block**2
    x = w.reshaped(x, [batch, high, wide, kept, block, block])
    x = w.transposed(x, [0, 1, 4, 2, 5, 3])
    return w.reshaped(x, [batch, high * block, wide * block, kept], last=True)


def _pixel_unshuffle(w: Writer, node: Node) -> Value:
    ref, block = node.args[0], int(node.args[1])
    batch, channels, high, wide = w.shape(ref)
    x, rows, columns = w.read(ref, last=True), high // block, wide // block
    x = w.reshaped(x, [batch * rows, block, columns, block, channels])
    x = w.transposed(x, [0, 2, 4, 1, 3])
    return w.reshaped(x, [batch, rows, columns, channels * block**2], last=True)


def _channel_shuffle(w: Writer, node: Node) -> Value:
    ref, groups = node.args[0], int(node.args[1])
    batch, channels, high, wide = w.shape(ref)
    x = w.reshaped(w.read(ref, last=True), [batch, high, wide, groups, channels // groups])
    x = w.transposed(x, [0, 1, 2, 4, 3])
    return w.reshaped(x, [batch, high, wide, channels], last=True)


def _same(w: Writer, node: Node) -> Value:
    return w.read(node.args[0])


def _nearest(w: Writer, node: Node) -> Value:
    x, shape = w.read(node.args[0], last=True), w.shape(node)
    return resized(w, node, x, "RESIZE_NEAREST_NEIGHBOR", channels_last(shape))


def resized(
    w: Writer, node: Node, x: Value, kind: str, shape: Sequence[int], **settings: Any
) -> Value:
    """An image of another height and width."""
    sizes = w.ints(shape[1:3])
    options = {
        "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions",
        "RESIZE_BILINEAR": "ResizeBilinearOptions",
    }[kind]
    return w.op(kind, [x, sizes], shape, x.form, options, last=True, **settings)


def _bilinear(w: Writer, node: Node) -> Value:
    x, shape = w.read(node.args[0], last=True), channels_last(w.shape(node))
    corners = bool(arguments(node)["align_corners"])
    settings = {"alignCorners": corners, "halfPixelCenters": not corners}
    return resized(w, node, x, "RESIZE_BILINEAR", shape, **settings)


def _glu(w: Writer, node: Node) -> Value:
    ref, dim = node.args[0], int(arguments(node)["dim"])
    x, form = w.read_floats(ref), w.form(node)
    half = w.shape(ref)[dim] // 2
    value, gate = (part(w, x, dim, start, half) for start in (0, half))
    gate = w.op("LOGISTIC", [gate], gate.shape, form, last=x.last)
    return w.op("MUL", [value, gate], gate.shape, form, "MulOptions", last=x.last)


_VIEWS = (
    "reshape view flatten unflatten squeeze unsqueeze ravel _unsafe_view view_as reshape_as".split()
)
_AS_THEY_ARE = "contiguous clone alias detach dropout".split()

CONVERTERS: dict[str, Converter] = {
    **dict.fromkeys(_VIEWS, _reshape),
    **dict.fromkeys(_AS_THEY_ARE, _same),
    **dict.fromkeys(["transpose", "swapaxes", "swapdims"], _permuted(_swapped)),
    "permute": _permuted(lambda node, rank: node.args[1]),
    **dict.fromkeys(["t", "numpy_T"], _permuted(lambda node, rank: range(rank)[::-1])),
    "mT": _permuted(lambda node, rank: [*range(rank - 2), rank - 1, rank - 2]),
    "movedim": _permuted(_moved),
    "moveaxis": _permuted(_moved),
    "cat": _cat,
    "concat": _cat,
    "stack": _stack,
    "slice": _slice,
    "narrow": _narrow,
    "select": _select,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "reflection_pad1d": lambda w, node: _mirror(w, node, "reflect"),
    "reflection_pad2d": lambda w, node: _mirror(w, node, "reflect"),
    **dict.fromkeys(["expand", "expand_as", "broadcast_to"], _expand),
    **dict.fromkeys(["repeat", "tile"], _repeat),
    "flip": _flip,
    "roll": _roll,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "channel_shuffle": _channel_shuffle,
    "glu": _glu,
    "upsample_nearest2d": _nearest,
    "upsample_bilinear2d": _bilinear,
}
GETITEM = _getitem
# What has no operator of its own: its results are made where they are read.
LAZY = frozenset({*_CHUNKS, "unbind"})
