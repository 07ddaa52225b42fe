"""Activations as unsigned integers: the same values, 128 higher, with a zero point 128 higher.

OpenVINO chooses between int8 and uint8 for each tensor by itself and takes the zero point along; at
a concatenation of int8 tensors, and in attention on them, it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from octavo.graph.graph import Graph, Node, Ref, TensorMeta
from octavo.graph.operators import arguments, with_arguments
from octavo.graph.qdq import ATTENTION, DEQUANTIZE, QUANTIZE
from octavo.graph.rewrite import rewrite
from octavo.quantization.targets import ROLES, SHARED

_SHIFT = 128


def with_unsigned_activations(graph: Graph, symmetric: bool = False) -> Graph:
    """The graph whose int8 activations are uint8; results stay int8.

    Args:
        graph: in canonical QDQ form.
        symmetric: leave those whose zero point is 0 as they are, but for what rounded attention
            reads.
    """
    shifted = {node.name for node in graph.nodes if _is_shifted(node, graph, symmetric)}
    if not shifted:
        return graph
    results = {name: f"{name}.int8" for name in graph.output_names() if name in shifted}

    def unsigned(node: Node) -> Iterator[Node]:
        if node.name in shifted:
            yield _shifted(node)
            if node.name in results:
                yield from _signed(node.name, node.meta)
        elif node.op == DEQUANTIZE and node.args[0].name in shifted:
            yield with_arguments(node, zero_point=arguments(node)["zero_point"] + _SHIFT)
        else:
            yield node

    return rewrite(graph.returning(results), unsigned)


def _is_shifted(node: Node, graph: Graph, symmetric: bool) -> bool:
    if node.op != QUANTIZE or arguments(node)["dtype"] != torch.int8:
        return False
    stays = symmetric and arguments(node)["zero_point"] == 0
    if stays and not any(reader.op == ATTENTION for reader in _readers(node, graph)):
        return False
    return all(user.op == DEQUANTIZE for user in graph.users[node.name])


def _readers(node: Node, graph: Graph) -> Iterator[Node]:
    """What reads the values that a node rounds, moved perhaps."""
    for user in graph.users[node.name]:
        yield user
        if user.op == DEQUANTIZE or ROLES.get(user.short_op) == SHARED:
            yield from _readers(user, graph)


def _shifted(node: Node) -> Node:
    given = arguments(node)
    moved = {name: given[name] + _SHIFT for name in ("zero_point", "qmin", "qmax")}
    assert node.meta is not None
    meta = replace(node.meta, dtype="uint8")
    return replace(with_arguments(node, **moved, dtype=torch.uint8), meta=meta)


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
