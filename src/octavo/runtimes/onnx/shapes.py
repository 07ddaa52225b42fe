"""Operators that give a tensor another shape, order or size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from octavo.errors import ExportError
from octavo.graph.graph import Node, Ref
from octavo.graph.operators import arguments
from octavo.runtimes.onnx import quantization
from octavo.runtimes.onnx.sizes import TO_THE_END, axis_of, joined, shape, sizes
from octavo.runtimes.onnx.writer import Converter, Writer

# torch's modes -> ONNX's.
_PADDING = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


def _reshape(w: Writer, node: Node) -> Any:
    """To the shape that is known, where at most one size is open; else to the computed one."""
    meta, x = w.meta(node).shape, w.read(node.args[0])
    if meta.count(None) <= 1:
        return w.op("Reshape", x, w.ints([-1 if size is None else size for size in meta]))
    return w.op("Reshape", x, _COMPUTED.get(node.short_op, _given_shape)(w, node))


def _given_shape(w: Writer, node: Node) -> str:
    return sizes(w, node.args[1])


def _shape_of_another(w: Writer, node: Node) -> str:
    return shape(w, node.args[1])


def _flattened(w: Writer, node: Node) -> str:
    x, given = node.args[0], arguments(node)
    start, end = (axis_of(w, x, given[name]) for name in ("start_dim", "end_dim"))
    return joined(w, shape(w, x, 0, start), [-1], shape(w, x, end + 1))


def _unflattened(w: Writer, node: Node) -> str:
    x, given = node.args[0], arguments(node)
    axis = axis_of(w, x, given["dim"])
    return joined(w, shape(w, x, 0, axis), sizes(w, given["sizes"]), shape(w, x, axis + 1))


_COMPUTED: dict[str, Callable[[Writer, Node], str]] = {
    "view_as": _shape_of_another,
    "reshape_as": _shape_of_another,
    "flatten": _flattened,
    "unflatten": _unflattened,
}


def _transposed(order: Any) -> Converter:
    """Axes in another order: a function of the node's arguments and the axes in theirs."""

    def convert(w: Writer, node: Node) -> Any:
        x = node.args[0]
        axes = list(range(w.rank(x)))
        given = [_axes(w, x, arg) for arg in node.args[1:]]
        return w.op("Transpose", w.read(x), perm=order(axes, *given))

    return convert


def _axes(w: Writer, x: Ref, axes: Any) -> list[int]:
    axes = axes if isinstance(axes, list | tuple) else [axes]
    return [axis_of(w, x, axis) for axis in axes]


def _reversed(axes: list[int]) -> list[int]:
    return axes[::-1]


def _last_swapped(axes: list[int]) -> list[int]:
    return [*axes[:-2], axes[-1], axes[-2]]


def _permuted(axes: list[int], order: list[int]) -> list[int]:
    return order


def _swapped(axes: list[int], one: list[int], other: list[int]) -> list[int]:
    (a,), (b,) = one, other
    axes[a], axes[b] = axes[b], axes[a]
    return axes


def _moved(axes: list[int], sources: list[int], places: list[int]) -> list[int]:
    order = [axis for axis in axes if axis not in sources]
    for place, source in sorted(zip(places, sources, strict=True)):
        order.insert(place, source)
    return order


def _squeeze(w: Writer, node: Node) -> Any:
    """Axes whose size is not 1 stay."""
    x, known = node.args[0], w.meta(node.args[0]).shape
    dim = arguments(node).get("dim")
    axes = range(len(known)) if dim is None else _axes(w, x, dim)
    chosen = [axis for axis in axes if known and known[axis] == 1]
    return w.op("Squeeze", w.read(x), w.ints(chosen)) if chosen else w.read(x)


def _unsqueeze(w: Writer, node: Node) -> Any:
    axis = int(arguments(node)["dim"]) % w.rank(node)
    return w.op("Unsqueeze", w.read(node.args[0]), w.ints([axis]))


def _expand(w: Writer, node: Node) -> Any:
    """ONNX's sizes of 1 keep what is there."""
    x, wanted = node.args[0], w.meta(node).shape
    padded = (1,) * (len(wanted) - w.rank(x)) + w.meta(x).shape
    expanded = [
        computed if size is None and old == 1 else 1 if size is None else size
        for size, old, computed in zip(wanted, padded, arguments(node)["size"], strict=True)
    ]
    return w.op("Expand", w.read(x), sizes(w, expanded))


def _expand_as(w: Writer, node: Node) -> Any:
    return w.op("Expand", w.read(node.args[0]), w.op("Shape", w.read(node.args[1])))


def _copy(w: Writer, node: Node) -> Any:
    """The second tensor in the shape and dtype of the first."""
    target, source = node.args[:2]
    value = w.read_as(source, w.meta(node).dtype)
    return w.op("Expand", value, w.op("Shape", w.read(target)))


def _repeat(w: Writer, node: Node) -> Any:
    """A tensor has axes of one before its first, and is repeated once along those not named."""
    x, repeats = node.args[:2]
    value, missing = w.read(x), len(repeats) - w.rank(x)
    if missing > 0:
        value = w.op("Unsqueeze", value, w.ints(range(missing)))
    return w.op("Tile", value, sizes(w, [1] * -missing + list(repeats)))


def _repeat_interleave(w: Writer, node: Node) -> Any:
    given = arguments(node)
    x, repeats, axis = node.args[0], given["repeats"], given.get("dim")
    if not isinstance(repeats, int) or axis is None:
        raise ExportError(
            f"{node.name}: {node.op} has an ONNX form only for a number of repeats along an axis; "
            "give both"
        )
    axis = axis_of(w, x, axis)
    spread = w.op("Unsqueeze", w.read(x), w.ints([axis + 1]))
    tiles = [1] * (w.rank(x) + 1)
    tiles[axis + 1] = repeats
    wanted = joined(w, shape(w, x, 0, axis), [-1], shape(w, x, axis + 1))
    return w.op("Reshape", w.op("Tile", spread, w.ints(tiles)), wanted)


def _cat(w: Writer, node: Node) -> Any:
    """Without vectors of no value, which torch joins to tensors of any rank."""
    tensors = [tensor for tensor in node.args[0] if w.meta(tensor).shape != (0,)]
    axis = int(arguments(node)["dim"]) % w.rank(node)
    dtype = w.meta(node).dtype
    return w.op("Concat", *(w.read_as(tensor, dtype) for tensor in tensors), axis=axis)


def _stack(w: Writer, node: Node) -> Any:
    axis, dtype = int(arguments(node)["dim"]) % w.rank(node), w.meta(node).dtype
    values = [w.read_as(tensor, dtype) for tensor in node.args[0]]
    parts = [w.op("Unsqueeze", value, w.ints([axis])) for value in values]
    return w.op("Concat", *parts, axis=axis)


def _pad(w: Writer, node: Node) -> Any:
    given = arguments(node)
    if given["mode"] == "circular":
        return _circular(w, node, given["pad"])
    return _padded(w, node, _PADDING[given["mode"]], given["pad"], given["value"])


def _circular(w: Writer, node: Node, pads: Any) -> str:
    """Each end in front of the other: not every runtime knows ONNX's padding around."""
    value, rank = w.read(node.args[0]), w.rank(node)
    for index in range(0, len(pads), 2):
        before, behind = pads[index : index + 2]
        axis = rank - 1 - index // 2
        last = w.op("Slice", value, w.ints([-before]), w.ints([TO_THE_END]), w.ints([axis]))
        first = w.op("Slice", value, w.ints([0]), w.ints([behind]), w.ints([axis]))
        value = w.op("Concat", *[last] * (before > 0), value, first, axis=axis)
    return value


def _constant_pad(w: Writer, node: Node) -> Any:
    given = arguments(node)
    return _padded(w, node, "constant", given["pad"], given["value"])


def _edge_pad(mode: str) -> Converter:
    return lambda w, node: _padded(w, node, mode, arguments(node)["padding"], None)


def _padded(w: Writer, node: Node, mode: str, pads: Any, value: Any) -> str:
    """torch has pairs of pads from the last axis on, ONNX those before all axes, then behind."""
    x = node.args[0]
    pairs = [(pads[i], pads[i + 1]) for i in range(0, len(pads), 2)][::-1]
    pairs = [(0, 0)] * (w.rank(x) - len(pairs)) + pairs
    ordered = [before for before, _ in pairs] + [after for _, after in pairs]
    if mode == "constant" and not value:
        return quantization.padded(w, x, sizes(w, ordered), made_by=node)
    filling = w.constant(value, w.meta(x).dtype) if mode == "constant" else ""
    return w.op("Pad", w.read(x), sizes(w, ordered), filling, mode=mode)


def _pixel_shuffle(w: Writer, node: Node) -> Any:
    x, block = node.args
    if w.rank(x) != 4:
        raise ExportError(f"{node.name}: {node.op} has an ONNX form only for batches of images")
    return w.op("DepthToSpace", w.read(x), blocksize=int(block), mode="CRD")


def _pixel_unshuffle(w: Writer, node: Node) -> Any:
    """ONNX's `SpaceToDepth` orders channels otherwise."""
    x, block = node.args
    channels = w.meta(node).shape[1]
    if w.rank(x) != 4 or channels is None:
        raise ExportError(f"{node.name}: {node.op} has an ONNX form only for batches of images")
    height, width = (w.op("Div", shape(w, x, a, a + 1), w.ints([block])) for a in (2, 3))
    split = joined(w, [-1, channels // block**2], height, [block], width, [block])
    moved = w.op("Transpose", w.op("Reshape", w.read(x), split), perm=[0, 1, 3, 5, 2, 4])
    return w.op("Reshape", moved, joined(w, [-1, channels], height, width))


def _channel_shuffle(w: Writer, node: Node) -> Any:
    x, groups = node.args
    channels = w.meta(x).shape[1]
    if channels is None:
        raise ExportError(f"{node.name}: {node.op} has an ONNX form only for a number of channels")
    space = shape(w, x, 2)
    split = joined(w, shape(w, x, 0, 1), [groups, channels // groups], space)
    order = [0, 2, 1, *range(3, w.rank(x) + 1)]
    moved = w.op("Transpose", w.op("Reshape", w.read(x), split), perm=order)
    return w.op("Reshape", moved, shape(w, x))


def _same(w: Writer, node: Node) -> Any:
    return w.read(node.args[0])


CONVERTERS: dict[str, Converter] = {
    **dict.fromkeys(
        "reshape view _unsafe_view view_as reshape_as flatten unflatten ravel".split(), _reshape
    ),
    **dict.fromkeys(["t", "numpy_T"], _transposed(_reversed)),
    "mT": _transposed(_last_swapped),
    "permute": _transposed(_permuted),
    **dict.fromkeys(["transpose", "swapaxes", "swapdims"], _transposed(_swapped)),
    **dict.fromkeys(["movedim", "moveaxis"], _transposed(_moved)),
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    **dict.fromkeys(["expand", "broadcast_to"], _expand),
    "expand_as": _expand_as,
    "copy": _copy,
    **dict.fromkeys(["repeat", "tile"], _repeat),
    "repeat_interleave": _repeat_interleave,
    **dict.fromkeys(["cat", "concat"], _cat),
    "stack": _stack,
    "pad": _pad,
    "constant_pad_nd": _constant_pad,
    **{f"reflection_pad{dims}d": _edge_pad("reflect") for dims in (1, 2, 3)},
    **{f"replication_pad{dims}d": _edge_pad("edge") for dims in (1, 2, 3)},
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "channel_shuffle": _channel_shuffle,
    **dict.fromkeys("contiguous clone alias detach lift_fresh_copy".split(), _same),
}
