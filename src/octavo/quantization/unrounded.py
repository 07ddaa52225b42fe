"""The float graph behind a quantized one: the same operators, weights that were rounded once."""

from __future__ import annotations

from dataclasses import replace

import torch

from octavo.graph.graph import Graph, Ref, map_refs
from octavo.graph.program import compile_steps, steps_of
from octavo.graph.qdq import DEQUANTIZE, DYNAMIC, QUANTIZE, is_own


def without_rounding(graph: Graph) -> Graph:
    """The float graph behind a quantized one: its weights dequantized, no quantize nodes."""
    graph = roundings_removed(graph)
    constants = dict(graph.constants)
    nodes = []
    for node in graph.nodes:
        if is_own(node) and all(name in constants for name in node.refs()):
            run = compile_steps(
                [],
                steps_of(replace(graph, nodes=(node,)), torch.device("cpu")),
                [node.name],
                constants,
            )
            (constants[node.name],) = run()
        else:
            nodes.append(node)
    return replace(graph, nodes=tuple(nodes), constants=constants).pruned()


def roundings_removed(graph: Graph) -> Graph:
    """The graph without quantize nodes of values; weights are read back from integers as before."""
    same: dict[str, str] = {}
    quantized: set[str] = set()
    nodes = []
    for node in graph.nodes:
        if node.op in (QUANTIZE, DYNAMIC):
            quantized.add(node.name)
        elif node.op != DEQUANTIZE or node.args[0].name not in quantized:
            nodes.append(node.renamed(same))
            continue
        source = node.args[0].name
        same[node.name] = same.get(source, source)
    outputs = map_refs(graph.outputs, lambda ref: Ref(same.get(ref.name, ref.name)))
    return replace(graph, nodes=tuple(nodes), outputs=outputs).pruned()
