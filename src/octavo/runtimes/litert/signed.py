"""Activations as signed integers: the same values, 128 lower, with a zero point 128 lower.

LiteRT's kernels compute with int8, whatever a target plans by.

Tested in tests/runtimes/litert/test_export.py.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from octavo.graph.graph import Graph, Node
from octavo.graph.operators import arguments, with_arguments
from octavo.graph.qdq import DEQUANTIZE, QUANTIZE
from octavo.graph.rewrite import rewrite

_SHIFT = 128


def with_signed_activations(graph: Graph) -> Graph:
    """The graph whose uint8 activations are int8; integers that leave it stay uint8."""
    shifted = {node.name for node in graph.nodes if _is_shifted(node)}

    def signed(node: Node) -> Node:
        if node.name in shifted:
            return _shifted(node)
        if node.op == DEQUANTIZE and node.args[0].name in shifted:
            return with_arguments(node, zero_point=arguments(node)["zero_point"] - _SHIFT)
        return node

    return rewrite(graph, signed)


def _is_shifted(node: Node) -> bool:
    return node.op == QUANTIZE and arguments(node)["dtype"] == torch.uint8


def _shifted(node: Node) -> Node:
    given = arguments(node)
    moved = {name: given[name] - _SHIFT for name in ("zero_point", "qmin", "qmax")}
    assert node.meta is not None
    meta = replace(node.meta, dtype="int8")
    return replace(with_arguments(node, **moved, dtype=torch.int8), meta=meta)


def unsigned_results(graph: Graph) -> frozenset[str]:
    """The results of a graph that are uint8 integers, which a file gives 128 lower."""
    return frozenset(
        name for name in graph.leaving if name in graph.by_name and _is_shifted(graph.by_name[name])
    )
