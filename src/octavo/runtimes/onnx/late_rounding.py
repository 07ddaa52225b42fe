"""What is only moved is rounded once.

A graph rounds in front of and behind each move between int8 layers. OpenVINO takes rounding into
the layer before it, and moves into attention behind it, but neither with the other in between.
"""

from __future__ import annotations

from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.operators import arguments
from octavo.graph.qdq import ATTENTION, DEQUANTIZE, QUANTIZE, rounding_behind
from octavo.graph.rewrite import Part, rewrite
from octavo.quantization.targets import PRODUCT, ROLES

_MOVES = frozenset(
    """
    reshape flatten unflatten squeeze unsqueeze transpose permute t movedim swapaxes
    """.split()
)


def with_late_rounding(graph: Graph) -> Graph:
    """The graph without roundings that change nothing.

    Args:
        graph: in canonical QDQ form.
    """
    late: set[str] = set()  # rounding nodes that the one behind the move does all for
    again: set[str] = set()  # those that round what is rounded already
    for node in graph.nodes:
        first = _rounding_in_front(graph, node)
        if first is None:
            continue
        if _made_by_product(graph, first, late) and _read_once(graph, first):
            late.add(first.name)
        else:
            again.add(node.name)

    def rounded_once(node: Node) -> Part:
        if node.op == DEQUANTIZE and node.args[0].name in late | again:
            source: Ref = graph.by_name[node.args[0].name].args[0]
            return source
        return node

    return rewrite(graph, rounded_once)


def _rounding_in_front(graph: Graph, node: Node) -> Node | None:
    """The node that rounds alike what is moved before a node rounds it."""
    if node.op != QUANTIZE:
        return None
    move = graph.producer(node.args[0])
    if move is None or move.short_op not in _MOVES:
        return None
    first = rounding_behind(graph, next(iter(arguments(move).values())))
    return first if first is not None and first.args[1:] == node.args[1:] else None


def _made_by_product(graph: Graph, rounding: Node, late: set[str]) -> bool:
    """Whether a node rounds what a product gives, which may have been moved unrounded."""
    maker = graph.producer(rounding.args[0])
    while maker is not None and maker.short_op in _MOVES:
        before = rounding_behind(graph, next(iter(arguments(maker).values())))
        if before is None or before.name not in late:
            return False
        maker = graph.producer(before.args[0])
    if maker is None:
        return False
    return maker.op == ATTENTION or ROLES.get(maker.short_op) == PRODUCT


def _read_once(graph: Graph, rounding: Node) -> bool:
    """Whether one move alone reads what a node rounds, and one node what comes of it."""
    name = rounding.name
    for _ in range(3):  # dequantize, the move, the next rounding
        if len(graph.users[name]) != 1 or name in graph.leaving:
            return False
        name = graph.users[name][0].name
    return True
