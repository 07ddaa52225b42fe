"""Graphs as files of version 1 hold them: weights were read by three operators, not by one.

====================================================  =============================================
version 1                                             scale and zero point
====================================================  =============================================
``dequantize(q, scale, zero_point)``                  numbers, one for the tensor
``dequantize_channels(q, scale, zero_point, axis)``   ``[channels]``
``dequantize_groups(q, scale, zero_point)``           ``[rows, groups]``
====================================================  =============================================
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.qdq import DEQUANTIZE, DEQUANTIZE_WEIGHT, UNPACK

_CHANNELS = "octavo.dequantize_channels.default"
_GROUPS = "octavo.dequantize_groups.default"


def upgraded(graph: Graph) -> Graph:
    """The graph in today's form. It may come from anywhere: what it holds is checked afterwards.

    Raises:
        ValueError, TypeError, LookupError, AttributeError, RuntimeError: a node that reads a weight
            is malformed.
    """
    constants = dict(graph.constants)
    nodes = []
    for node in graph.nodes:
        source = _constant_behind(node, graph)
        if source is not None:
            node, made = _read_by_tensors(node, source, graph)
            constants |= made
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes), constants=constants)


def _constant_behind(node: Node, graph: Graph) -> tuple[str, list[int]] | None:
    """Name and shape of the weight that a node dequantizes; ``None`` where it does not."""
    if node.op not in (DEQUANTIZE, _CHANNELS, _GROUPS):
        return None
    name = node.args[0].name
    unpack = graph.by_name.get(name)
    if unpack is not None and unpack.op == UNPACK:
        return unpack.args[0].name, list(unpack.args[1])
    return (name, list(graph.constants[name].shape)) if name in graph.constants else None


def _read_by_tensors(
    node: Node, source: tuple[str, list[int]], graph: Graph
) -> tuple[Node, dict[str, Tensor]]:
    name, shape = source
    q, *parameters = node.args
    sizes = [1] * len(shape)
    if node.op == DEQUANTIZE:
        names = [f"{name}_scale", f"{name}_zero_point"]
        if any(taken in graph.constants for taken in names):
            raise ValueError(f"it has constants of the names {names}")
        values: Iterable[Tensor] = (
            torch.tensor(value, dtype=dtype)
            for value, dtype in zip(parameters, (torch.float32, torch.int32), strict=True)
        )
    else:
        names = [ref.name for ref in parameters[:2]]
        values = [graph.constants[own] for own in names]
    if node.op == _CHANNELS:
        sizes[parameters[2]] = shape[parameters[2]]
    tensors = [v if node.op == _GROUPS else v.reshape(sizes) for v in values]
    read = replace(node, op=DEQUANTIZE_WEIGHT, args=(q, *map(Ref, names)), kwargs={})
    return read, dict(zip(names, tensors, strict=True))
