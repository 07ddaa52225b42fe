"""What ExecuTorch computes in place of a graph: with the roundings that XNNPACK's kernels have.

Its dynamic layers round each row by a range of its own, to 256 values, and scales of groups of
weights are bfloat16. Where a graph says otherwise, results are judged by this one.

Tested in tests/runtimes/executorch/test_meaning.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.operators import arguments, with_arguments
from octavo.graph.qdq import DEQUANTIZE_WEIGHT, DYNAMIC, weight_behind
from octavo.graph.rewrite import Constant, Part, rewrite
from octavo.runtimes.executorch.forms import HIGHEST, LOWEST, unreadable


def as_xnnpack_rounds(graph: Graph) -> Graph:
    """The graph that ExecuTorch computes: the given one, where XNNPACK has all that it says."""
    return rewrite(graph, lambda node: _as_there(node, graph))


def _as_there(node: Node, graph: Graph) -> Iterator[Part]:
    readers = graph.users[node.name]
    if node.op == DYNAMIC and all(_is_there(reader, graph) for reader in readers):
        yield with_arguments(node, qmin=LOWEST, qmax=HIGHEST, symmetric=False, per_token=True)
        return
    if node.op == DEQUANTIZE_WEIGHT:
        weight = weight_behind(graph, Ref(node.name))
        there = all(_is_there(reader, graph) for reader in readers)
        if weight is not None and weight.grouped and there:
            scale = arguments(node)["scale"].name
            yield Constant(scale, weight.scale.bfloat16().float())
    yield node


def _is_there(reader: Node, graph: Graph) -> bool:
    """Whether XNNPACK has a kernel for a dynamic linear layer."""
    if reader.short_op != "linear":
        return False
    given = arguments(reader)
    source, weight = graph.producer(given["input"]), weight_behind(graph, given["weight"])
    dynamic = source is not None and source.op == DYNAMIC
    return dynamic and weight is not None and not unreadable(weight, reader)
