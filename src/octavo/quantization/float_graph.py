"""The float graph behind a quantized one: the same operators, weights that were rounded once."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.operators import arguments
from octavo.graph.program import computed
from octavo.graph.qdq import (
    ATTENTION,
    DEQUANTIZE,
    DYNAMIC,
    QUANTIZE,
    is_own,
    rounding_behind,
    weight_behind,
)
from octavo.graph.rewrite import Constant, Part, rewrite

_FLOAT_ATTENTION = "aten.scaled_dot_product_attention.default"


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


def with_floats(graph: Graph, layers: Collection[str]) -> Graph:
    """The graph with some of its layers in float: they read values that are not rounded, and the
    floats that their integer weights stand for; attention rounds no probabilities.

    What others read is rounded as before, so that no value has more roundings behind it.

    Args:
        graph: a quantized graph.
        layers: names of its nodes.
    """

    def in_float(node: Node) -> Iterator[Part]:
        if node.name not in layers:
            yield node
            return
        names = {}
        for name in dict.fromkeys(node.refs()):
            weight = weight_behind(graph, Ref(name))
            if weight is not None:
                names[name] = f"{name}.float"
                yield Constant(names[name], weight.floats())
            else:
                names[name] = _before_rounding(graph, name)
        yield _unrounded(node).renamed(names)

    return rewrite(graph, in_float)


def _before_rounding(graph: Graph, name: str) -> str:
    """The value that was rounded to this one, or the value itself."""
    rounding = rounding_behind(graph, Ref(name))
    node = graph.by_name.get(name)
    if rounding is None and node is not None and node.op == DYNAMIC:
        rounding = node
    return name if rounding is None else str(rounding.args[0].name)


def _unrounded(node: Node) -> Node:
    """Attention without rounded probabilities; any other node as it is."""
    if node.op != ATTENTION:
        return node
    given = arguments(node)
    tensors = tuple(given[name] for name in ("q", "k", "v", "mask"))
    named = {"scale": given["scale"], "enable_gqa": given["gqa"]}
    return replace(node, op=_FLOAT_ATTENTION, args=(*tensors, 0.0, given["causal"]), kwargs=named)
