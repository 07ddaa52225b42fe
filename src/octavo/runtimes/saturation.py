"""Products that overflow on CPUs without VNNI, where pairs of them are summed in int16.

``x0 * w0 + x1 * w1`` fits for certain where the largest activation times the sum of the two largest
weights of one sign does.

Tested in tests/runtimes/test_foreign_runtimes.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.operators import arguments
from octavo.graph.qdq import DYNAMIC, QuantizedWeight, is_own, rounding_behind, weight_behind
from octavo.graph.rewrite import Constant, Part, rewrite
from octavo.graph.weight_layouts import WEIGHT_LAYOUTS, groups_of, is_depthwise
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
    floats = {weight.reader.name: weight for weight in weights.values()}

    def with_floats(node: Node) -> Part:
        weight = floats.get(node.name)
        return node if weight is None else Constant(node.name, weight.floats())

    return rewrite(graph, with_floats), dict.fromkeys(weights, REASON)


def with_own_weights(graph: Graph) -> Graph:
    """The graph in which no two layers read one quantized weight: each has a copy of it."""
    weights = {node.name: _weight(graph, node.name) for node in graph.nodes}
    readers = {name: weight.reader for name, weight in weights.items() if weight is not None}
    taken: set[str] = set()

    def with_copies(node: Node) -> Iterator[Part]:
        own: dict[str, str] = {}
        for name in node.refs():
            if name in readers and name in taken:
                copies = {ref: f"{ref}.of.{node.name}" for ref in readers[name].refs()}
                for ref, copy in copies.items():
                    yield Constant(copy, graph.constants[ref])
                own[name] = f"{name}.of.{node.name}"
                yield replace(readers[name].renamed(copies), name=own[name])
            taken.add(name)
        yield node.renamed(own)

    return rewrite(graph, with_copies)


def overflowing(graph: Graph) -> dict[str, QuantizedWeight]:
    """Layers whose products of pairs may not fit, each with its weight."""
    weights = {node.name: _overflowing_weight(node, graph) for node in graph.nodes}
    return {name: weight for name, weight in weights.items() if weight is not None}


def _overflowing_weight(node: Node, graph: Graph) -> QuantizedWeight | None:
    if is_own(node):
        return None
    read = [(name, _weight(graph, name)) for name in node.refs()]
    weights = [weight for _, weight in read if weight is not None]  # recurrent layers have several
    rounded = (_bounds(name, graph) for name, weight in read if weight is None)
    bounds = next(filter(None, rounded), None)
    if bounds is None:
        return None
    low, high = bounds
    return next((w for w in weights if _too_large(node, w, high - min(low, 0))), None)


def _too_large(node: Node, weight: QuantizedWeight, highest: int) -> bool:
    """Whether this weight's products with activations from zero on may not fit."""
    integers = weight.integers
    if integers.dtype != torch.int8:
        return False
    if node.short_op in WEIGHT_LAYOUTS and is_depthwise(groups_of(node), integers):
        return False
    return overflows(integers.transpose(0, weight.axis or 0), highest)


def _bounds(name: str, graph: Graph) -> tuple[int, int] | None:
    """The lowest and highest integer that a rounded activation has."""
    node = graph.by_name.get(name)
    is_dynamic = node is not None and node.op == DYNAMIC
    rounding = node if is_dynamic else rounding_behind(graph, Ref(name))
    if rounding is None:
        return None
    given = arguments(rounding)
    return given["qmin"], given["qmax"]


def _weight(graph: Graph, name: str) -> QuantizedWeight | None:
    """Not of groups, nor of four bits, of which no two products overflow."""
    weight = weight_behind(graph, Ref(name))
    return None if weight is None or weight.grouped or weight.unpack is not None else weight
