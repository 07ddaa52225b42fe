"""Activations as unsigned integers: the same values, 128 higher, with a zero point 128 higher.

OpenVINO chooses between int8 and uint8 for each tensor by itself and takes the zero point along; at
a concatenation of int8 tensors, and in attention on them, it does not.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from octavo.graph.graph import Graph, Node, Ref, TensorMeta, map_refs
from octavo.graph.qdq import DEQUANTIZE, QUANTIZE

_SHIFT = 128


def with_unsigned_activations(graph: Graph) -> Graph:
    """The graph whose int8 activations are uint8; results stay int8.

    Args:
        graph: in canonical QDQ form.
    """
    users = graph.users
    shifted = {
        node.name
        for node in graph.nodes
        if node.op == QUANTIZE
        and node.args[5] == torch.int8
        and all(user.op == DEQUANTIZE for user in users[node.name])
    }
    if not shifted:
        return graph
    nodes = [_shifted(node, shifted) for node in graph.nodes]
    metas = graph.metas
    results = [name for name in dict.fromkeys(graph.output_names()) if name in shifted]
    for name in results:
        nodes += _signed(name, metas[name])
    outputs = map_refs(
        graph.outputs, lambda ref: Ref(f"{ref.name}.int8" if ref.name in results else ref.name)
    )
    return replace(graph, nodes=tuple(nodes), outputs=outputs)


def _shifted(node: Node, shifted: set[str]) -> Node:
    if node.name in shifted:
        x, scale, zero_point, low, high, _ = node.args
        args = (x, scale, *(q + _SHIFT for q in (zero_point, low, high)), torch.uint8)
        assert node.meta is not None
        return replace(node, args=args, meta=replace(node.meta, dtype="uint8"))
    if node.op == DEQUANTIZE and node.args[0].name in shifted:
        q, scale, zero_point = node.args
        return replace(node, args=(q, scale, zero_point + _SHIFT))
    return node


def _signed(name: str, meta: TensorMeta | None) -> list[Node]:
    """The int8 integers of a result."""
    assert meta is not None
    wide, moved, narrow = f"{name}.int32", f"{name}.moved", f"{name}.int8"
    int32 = replace(meta, dtype="int32")
    return [
        Node(wide, "aten.to.dtype", (Ref(name), torch.int32), meta=int32),
        Node(moved, "aten.sub.Scalar", (Ref(wide), _SHIFT), meta=int32),
        Node(narrow, "aten.to.dtype", (Ref(moved), torch.int8), meta=meta),
    ]
