"""The float graph behind a quantized one: the same operators, weights that were rounded once."""

from __future__ import annotations

from octavo.graph.graph import Graph, Node
from octavo.graph.program import computed
from octavo.graph.qdq import DEQUANTIZE, DYNAMIC, QUANTIZE, is_own
from octavo.graph.rewrite import Constant, Part, rewrite


def without_rounding(graph: Graph) -> Graph:
    """The float graph behind a quantized one: its weights dequantized, no quantize nodes."""
    graph = roundings_removed(graph)
    known = dict(graph.constants)

    def in_float(node: Node) -> Part:
        if not is_own(node) or not all(name in known for name in node.refs()):
            return node
        known[node.name] = computed(node, known)
        return Constant(node.name, known[node.name])

    return rewrite(graph, in_float)


def roundings_removed(graph: Graph) -> Graph:
    """The graph without quantize nodes of values; weights are read back from integers as before."""
    rounded = {node.name for node in graph.nodes if node.op in (QUANTIZE, DYNAMIC)}
    rounded |= {n.name for n in graph.nodes if n.op == DEQUANTIZE and n.args[0].name in rounded}
    return rewrite(graph, lambda node: node.args[0] if node.name in rounded else node)
