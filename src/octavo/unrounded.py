"""The float graph behind a quantized one: the same operators, weights that were rounded once."""

from __future__ import annotations

from dataclasses import replace

import torch

from octavo.graph import Graph, Ref, map_refs
from octavo.program import compile_steps, steps_of


def without_rounding(graph: Graph) -> Graph:
    """The float graph behind a quantized one: its weights dequantized, no quantize nodes."""
    same: dict[str, str] = {}
    constants = dict(graph.constants)
    nodes = []
    for node in graph.nodes:
        node = node.renamed(same)
        known = all(name in constants for name in node.refs())
        if node.short_op in ("quantize", "fake_quantize_dynamic") or (
            node.short_op == "dequantize" and not known
        ):
            same[node.name] = node.args[0].name
        elif node.op.startswith("octavo.") and known:
            run = compile_steps(
                [],
                steps_of(replace(graph, nodes=(node,)), torch.device("cpu")),
                [node.name],
                constants,
            )
            (constants[node.name],) = run()
        else:
            nodes.append(node)
    outputs = map_refs(graph.outputs, lambda ref: Ref(same.get(ref.name, ref.name)))
    return replace(graph, nodes=tuple(nodes), constants=constants, outputs=outputs).pruned()
