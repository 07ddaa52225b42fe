"""The layers of a quantized graph that read integers, in groups that are likely to go together."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from octavo.graph.graph import Graph, Node
from octavo.graph.multiply_adds import multiply_adds
from octavo.graph.qdq import ATTENTION, DEQUANTIZE, DEQUANTIZED, DYNAMIC, is_own, weight_behind
from octavo.graph.weight_layouts import groups_of, is_depthwise
from octavo.quantization.targets import LOOKUP, PRODUCT, ROLES, WEIGHTED

_PRODUCTS = (WEIGHTED, PRODUCT)


@dataclass(frozen=True)
class LayerGroup:
    """Layers that are moved out of int8 and back together.

    Attributes:
        name: what they are, in words.
        layers: their names.
        narrow: those that bfloat16 makes more precise than the plan has them: they multiply, and
            round what they read.
        work: their multiply-adds, where they are counted.
    """

    name: str
    layers: frozenset[str]
    narrow: frozenset[str]
    work: int = 0


def all_layers(graph: Graph) -> LayerGroup:
    """All that reads integers."""
    return _group("all layers", _layers(graph), graph, {})


def kinds_of_layers(graph: Graph) -> tuple[LayerGroup, ...]:
    """By what they are (depthwise convolutions, attention, sums and pools), most work first."""
    return _grouped(graph, lambda node: _kind(node, graph), lambda node: _kind(node, graph))


def like_layers(graph: Graph) -> tuple[LayerGroup, ...]:
    """By operator and all sizes: a kernel is as quick in one as in another. Those with the fewest
    products for a result come first, since integers gain them the least.
    """

    def alike(node: Node) -> Hashable:
        shapes = tuple(tuple(shape) for shape in _weights(node, graph))
        result = None if node.meta is None else node.meta.shape
        return node.short_op, shapes, result, groups_of(node)

    def name(node: Node) -> str:
        sizes = ", ".join("x".join(map(str, shape)) for shape in _weights(node, graph)[:1])
        return f"{node.short_op} {sizes}".rstrip()

    def products(group: LayerGroup) -> int:
        weights = _weights(graph.by_name[min(group.layers)], graph)
        return max((math.prod(shape[1:]) for shape in weights), default=0)

    return tuple(sorted(_grouped(graph, alike, name), key=products))


def _grouped(
    graph: Graph, alike: Callable[[Node], Hashable], name: Callable[[Node], str]
) -> tuple[LayerGroup, ...]:
    members: dict[Hashable, list[Node]] = {}
    for node in _layers(graph):
        members.setdefault(alike(node), []).append(node)
    counts = multiply_adds(graph)
    groups = (
        _group(_called(name(nodes[0]), nodes), nodes, graph, counts) for nodes in members.values()
    )
    return tuple(sorted(groups, key=lambda group: -group.work))


def _called(name: str, nodes: Sequence[Node]) -> str:
    first = nodes[0].name
    return f"{name} ({first})" if len(nodes) == 1 else f"{name} ({first} and {len(nodes) - 1} more)"


def _group(name: str, nodes: Sequence[Node], graph: Graph, counts: Mapping[str, int]) -> LayerGroup:
    names = frozenset(node.name for node in nodes)
    narrow = frozenset(node.name for node in nodes if _rounds_and_multiplies(node, graph))
    return LayerGroup(name, names, narrow, sum(counts.get(name, 0) for name in names))


def _layers(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if _reads(node, graph, DEQUANTIZED)]


def _reads(node: Node, graph: Graph, operators: frozenset[str]) -> bool:
    if is_own(node) and node.op != ATTENTION:
        return False
    made_by = (graph.by_name[name].op for name in node.refs() if name in graph.by_name)
    return any(op in operators for op in made_by)


def _rounds_and_multiplies(node: Node, graph: Graph) -> bool:
    multiplies = node.op == ATTENTION or ROLES.get(node.short_op) in _PRODUCTS
    return multiplies and _reads(node, graph, frozenset({DEQUANTIZE, DYNAMIC}))


def _kind(node: Node, graph: Graph) -> str:
    role = ROLES.get(node.short_op)
    if node.op == ATTENTION or role == PRODUCT:
        return "attention products"
    if role == LOOKUP:
        return "tables"
    if role != WEIGHTED:
        return "sums and pools"
    if node.short_op == "linear":
        return "linear layers"
    if not node.short_op.startswith("conv"):
        return "recurrent layers"
    weights = [weight_behind(graph, arg) for arg in node.args]
    depthwise = (w and is_depthwise(groups_of(node), w.integers) for w in weights)
    return "depthwise convolutions" if any(depthwise) else "convolutions"


def _weights(node: Node, graph: Graph) -> list[list[int]]:
    weights = (weight_behind(graph, arg) for arg in node.args)
    return [weight.shape for weight in weights if weight is not None]
