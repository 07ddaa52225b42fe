"""What a QDQ graph computes, in fewer passes over memory than the oracle takes: for judging drafts.

Weights are read back from their integers once, and an activation is rounded and read back in one
step, in float. Of finite values the outputs are the oracle's to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.operators import arguments
from octavo.graph.program import Step, compile_steps, step_of
from octavo.graph.qdq import DEQUANTIZE, QUANTIZE, rounding_behind, weight_behind
from octavo.graph.rewrite import Constant, Part, rewrite
from octavo.numerics import octavo_operators


def simulation_of(graph: Graph) -> Callable[..., tuple[Any, ...]]:
    """A function as `octavo.graph.program.run_of` makes it; it holds the weights in float."""
    folded, steps = simulated_steps(graph)
    return compile_steps(folded.input_names(), steps, folded.output_names(), folded.constants)


def simulated_steps(graph: Graph) -> tuple[Graph, list[Step]]:
    """The graph with its weights in float, and what is computed of it."""
    folded = rewrite(graph, lambda node: _read_once(graph, node))
    return folded, [_step(folded, node) for node in folded.nodes if not _is_read_back(folded, node)]


def _read_once(graph: Graph, node: Node) -> Part:
    weight = weight_behind(graph, Ref(node.name))
    return node if weight is None else Constant(node.name, weight.floats())


def _is_read_back(graph: Graph, node: Node) -> bool:
    """Whether a node rounds, and all that is wanted of it are the floats behind."""
    readers = graph.users.get(node.name, ())
    read_back = all(reader.op == DEQUANTIZE for reader in readers)
    return node.op == QUANTIZE and read_back and node.name not in graph.leaving


def _step(graph: Graph, node: Node) -> Step:
    rounding = rounding_behind(graph, Ref(node.name))
    if rounding is None:
        return step_of(node, graph.device)
    said = arguments(rounding)
    args = [said[name] for name in ("x", "scale", "zero_point", "qmin", "qmax")]
    return Step(node.name, octavo_operators.fake_quantize, args)
