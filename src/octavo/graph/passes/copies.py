"""``x[:, :2] = y``: what export writes as a copy over a part of ``x`` is ``y`` itself.

``aten.copy`` has no gradient, and asks for values that it does not read.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from octavo.graph.graph import Graph, Node, Ref


def copies_as_values(graph: Graph) -> Graph:
    """The graph with what is copied, in the dtype and sizes of what it is copied over."""
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op != "aten.copy.default" or node.meta is None:
            nodes.append(node)
            continue
        target, source = node.args[:2]
        found = graph.meta(source.name)
        if found is None or found.dtype != node.meta.dtype:
            cast = replace(
                node,
                name=f"{node.name}.cast",
                op="aten.to.dtype",
                args=(source, getattr(torch, node.meta.dtype)),
                meta=None if found is None else replace(node.meta, shape=found.shape),
                kwargs={},
            )
            nodes.append(cast)
            source = Ref(cast.name)
        nodes.append(replace(node, op="aten.expand_as.default", args=(source, target), kwargs={}))
    return replace(graph, nodes=tuple(nodes))
