"""Products that overflow on CPUs without VNNI, where pairs of them are summed in int16.

``x0 * w0 + x1 * w1`` fits for certain where the largest activation times the sum of the two largest
weights of one sign does.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from octavo.graph import operators
from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.qdq import DEQUANTIZE, DEQUANTIZE_CHANNELS, DYNAMIC, QUANTIZE, is_own
from octavo.graph.weighted_layers import WEIGHTED_LAYERS, is_depthwise
from octavo.runtimes import cpu

REASON = (
    "this CPU has no VNNI, its int8 kernel would saturate on these activations and weights: "
    'quantize with target="x86-avx2" and its default weights'
)


def overflows(weight: Tensor, highest: int) -> bool:
    """Whether a pair of products may not fit.

    Args:
        weight: int8 ``[outputs, ...]``.
        highest: the largest activation, as the kernel reads it from zero on.
    """
    rows = weight.flatten(1)
    count = min(2, rows.shape[1])
    most = rows.topk(count, dim=1).values.clamp(min=0).sum(1).max()
    least = rows.topk(count, dim=1, largest=False).values.clamp(max=0).sum(1).min()
    return highest * max(int(most), -int(least)) > torch.iinfo(torch.int16).max


def with_float_weights(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """The graph with float weights for layers that would overflow here, and the reason for each.

    For runtimes that choose their kernels themselves: with float weights they choose float ones.
    """
    if not cpu.saturates():
        return graph, {}
    weights = overflowing(graph)
    constants = dict(graph.constants)
    for weight in weights.values():
        read = (graph.constants[a.name] if isinstance(a, Ref) else a for a in weight.args)
        constants[weight.name] = operators.resolve(weight.op)(*read)
    replaced = {weight.name for weight in weights.values()}
    kept = tuple(node for node in graph.nodes if node.name not in replaced)
    reasons = dict.fromkeys(weights, REASON)
    return replace(graph, nodes=kept, constants=constants).pruned(), reasons


def with_own_weights(graph: Graph) -> Graph:
    """The graph in which no two layers read one quantized weight: each has a copy of it."""
    readers = {node.name: node for node in graph.nodes if _is_weight(node, graph)}
    taken: set[str] = set()
    constants = dict(graph.constants)
    nodes: list[Node] = []
    for node in graph.nodes:
        own: dict[str, str] = {}
        for name in node.refs():
            if name in readers and name in taken:
                copies = {ref: f"{ref}.of.{node.name}" for ref in readers[name].refs()}
                constants |= {copy: constants[ref] for ref, copy in copies.items()}
                own[name] = f"{name}.of.{node.name}"
                nodes.append(replace(readers[name].renamed(copies), name=own[name]))
            taken.add(name)
        nodes.append(node.renamed(own))
    return replace(graph, nodes=tuple(nodes), constants=constants)


def overflowing(graph: Graph) -> dict[str, Node]:
    """Layers whose products of pairs may not fit, each with the node that reads its weight."""
    found = {node.name: _overflowing_weight(node, graph) for node in graph.nodes}
    return {name: weight for name, weight in found.items() if weight is not None}


def _overflowing_weight(node: Node, graph: Graph) -> Node | None:
    read = [graph.by_name[name] for name in node.refs() if name in graph.by_name]
    weights = [other for other in read if _is_weight(other, graph)]  # recurrent layers have several
    bounds = next((_bounds(other, graph) for other in read if other not in weights), None)
    if bounds is None or is_own(node):
        return None
    low, high = bounds
    return next((w for w in weights if _too_large(node, w, graph, high - min(low, 0))), None)


def _too_large(node: Node, weight: Node, graph: Graph, highest: int) -> bool:
    """Whether this weight's products with activations from zero on may not fit."""
    integers = graph.constants[weight.args[0].name]
    if integers.dtype != torch.int8:
        return False
    if node.short_op in WEIGHTED_LAYERS and is_depthwise(node, integers):
        return False
    axis = weight.args[3] if weight.op == DEQUANTIZE_CHANNELS else 0
    return overflows(integers.transpose(0, axis), highest)


def _bounds(node: Node, graph: Graph) -> tuple[int, int] | None:
    """The lowest and highest integer that a rounded activation has."""
    if node.op == DYNAMIC:
        return node.args[1], node.args[2]
    rounding = graph.by_name.get(node.args[0].name) if node.op == DEQUANTIZE else None
    if rounding is None or rounding.op != QUANTIZE:
        return None
    return rounding.args[3], rounding.args[4]


def _is_weight(node: Node, graph: Graph) -> bool:
    constant = all(name in graph.constants for name in node.refs())
    return node.op in (DEQUANTIZE, DEQUANTIZE_CHANNELS) and constant
