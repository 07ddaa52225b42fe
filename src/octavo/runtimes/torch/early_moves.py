"""Moves of values, where they move least: behind a rounding bytes and not floats, and in front of a
linear layer, so that what stands behind that is done at once with it.

To round moved values is to move rounded ones, and a linear layer takes its rows in any order.

Tested in tests/runtimes/torch/test_early_moves.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from octavo.graph.graph import Graph, Node, Ref, TensorMeta, refs_in
from octavo.graph.operators import arguments, with_arguments
from octavo.graph.qdq import DEQUANTIZE, QUANTIZE, rounding_behind
from octavo.graph.rewrite import Part, rewrite

_ROWS = frozenset({"roll", "permute", "transpose"})  # they may move rows to other places
_MOVES = _ROWS | frozenset("reshape flatten unflatten squeeze unsqueeze swapaxes movedim".split())
_BYTES = 4  # of a float


def with_early_moves(graph: Graph) -> Graph:
    """The graph with moves in front of linear layers on integers, and roundings in front of moves.

    What nothing but a layer or rounding reads, or nothing but moves, has other values than before.
    """
    return _roundings_first(_moves_before_layers(graph))


@dataclass(frozen=True)
class _Rounding:
    """A quantize node, and where its integers stand."""

    node: Node
    name: str

    def nodes(self, source: str, meta: TensorMeta | None) -> Iterator[Node]:
        """The same rounding of another value, and how it is read back."""
        assert meta is not None
        _, scale, zero_point, *_ = self.node.args
        stored = replace(self.node.meta or meta, shape=meta.shape)
        q, dq = f"{self.name}.quantized", f"{self.name}.dequantized"
        yield Node(q, QUANTIZE, (Ref(source), *self.node.args[1:]), meta=stored)
        yield Node(dq, DEQUANTIZE, (Ref(q), scale, zero_point), meta=meta)

    @property
    def value(self) -> Ref:
        return Ref(f"{self.name}.dequantized")


# ---- in front of roundings ----


def _roundings_first(graph: Graph) -> Graph:
    chains = [_moves_in_front(graph, node) for node in graph.nodes if node.op == QUANTIZE]
    firsts: dict[str, Node] = {}  # the first of some moves -> the rounding behind the last
    others: dict[str, Node] = {}  # each of the others
    for rounding, moves in chains:
        firsts |= {move.name: rounding for move in moves[:1]}
        others |= {move.name: rounding for move in moves[1:]}

    def with_rounding(node: Node) -> Iterator[Part]:
        rounding = firsts.get(node.name) or others.get(node.name)
        if rounding is None:
            yield node
            return
        source = node.args[0].name
        rounded = _Rounding(rounding, f"{node.name}.source")
        yield from rounded.nodes(source, graph.metas[source])
        yield replace(node, args=(rounded.value, *node.args[1:]))

    return rewrite(graph, with_rounding)


def _moves_in_front(graph: Graph, rounding: Node) -> tuple[Node, list[Node]]:
    """A rounding, and the moves in front of it, in order, that nothing else reads."""
    moves: list[Node] = []
    node = graph.producer(rounding.args[0])
    while node is not None and _only_moves(graph, node):
        moves.insert(0, node)
        node = graph.producer(node.args[0])
    is_float = node is not None and node.op != DEQUANTIZE  # else there is nothing to move, or bytes
    return rounding, moves if is_float else []


def _only_moves(graph: Graph, node: Node) -> bool:
    metas = (node.meta, graph.metas.get(node.args[0].name)) if node.short_op in _MOVES else (None,)
    are_floats = all(meta is not None and meta.dtype == "float32" for meta in metas)
    return are_floats and graph.only_user(node.name) is not None


# ---- in front of layers ----


def _moves_before_layers(graph: Graph) -> Graph:
    places = {node.name: index for index, node in enumerate(graph.nodes)}
    behind = {
        node.name: _rows_moved_behind(graph, node, places)
        for node in graph.nodes
        if node.short_op == "linear"
    }
    moved = {move.name: layer for layer, moves in behind.items() for move in moves}

    def with_moves(node: Node) -> Iterator[Part]:
        if node.name in moved:
            yield Ref(moved[node.name])
        elif behind.get(node.name):
            yield from _moved_first(graph, node, behind[node.name])
        else:
            yield node

    return rewrite(graph, with_moves)


def _rows_moved_behind(graph: Graph, layer: Node, places: Mapping[str, int]) -> list[Node]:
    """The moves of whole rows behind a layer on integers, if there are any that take time."""
    source, meta = graph.metas.get(layer.args[0].name), layer.meta
    if rounding_behind(graph, layer.args[0]) is None or source is None or meta is None:
        return []
    width, wide = meta.shape[-1], source.shape[-1]
    if width is None or wide is None or wide > _BYTES * width:
        return []
    moves: list[Node] = []
    after = graph.only_user(layer.name)
    while after is not None and _moves_rows(graph, after, width):
        if any(places.get(name, -1) > places[layer.name] for name in refs_in(after.args[1:])):
            break
        moves.append(after)
        after = graph.only_user(after.name)
    return moves if any(move.short_op in _ROWS for move in moves) else []


def _moves_rows(graph: Graph, node: Node, width: int) -> bool:
    """Whether a node leaves each row whole, of so many values along the last axis."""
    if node.short_op not in (*_ROWS, "reshape") or node.meta is None:
        return False
    given, before = arguments(node), graph.metas[node.args[0].name]
    rank = 0 if before is None else len(before.shape)
    if not rank or node.meta.shape[-1] != width:
        return False
    if node.short_op == "reshape":
        return bool(given["shape"]) and given["shape"][-1] == width
    if node.short_op == "permute":
        return bool(given["dims"][-1] % rank == rank - 1)
    axes = given["dims"] if node.short_op == "roll" else node.args[1:]
    return bool(axes) and all(axis % rank != rank - 1 for axis in axes)


def _moved_first(graph: Graph, layer: Node, moves: list[Node]) -> Iterator[Node]:
    """The layer behind moves of its input's rows, which are rounded as that is."""
    value, source = layer.args[0], graph.metas[layer.args[0].name]
    rounding = rounding_behind(graph, value)
    assert rounding is not None
    assert source is not None
    width = source.shape[-1]
    for move in moves:
        assert move.meta is not None
        meta = TensorMeta((*move.meta.shape[:-1], width), "float32")
        name = f"{move.name}.before"
        made = replace(move, name=name, args=(value, *move.args[1:]), meta=meta)
        if move.short_op == "reshape":
            made = with_arguments(made, shape=[*arguments(move)["shape"][:-1], width])
        yield made
        rounded = _Rounding(rounding, name)
        yield from rounded.nodes(name, meta)
        value = rounded.value
    yield replace(layer, args=(value, *layer.args[1:]), meta=moves[-1].meta)
