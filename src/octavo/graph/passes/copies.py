"""``x[:, :2] = y``: what export writes as a copy over a part of ``x`` is ``y`` itself.

``aten.copy`` has no gradient, and asks for values that it does not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.rewrite import rewrite


def copies_as_values(graph: Graph) -> Graph:
    """The graph with what is copied, in the dtype and sizes of what it is copied over."""
    return rewrite(graph, lambda node: _as_value(node, graph))


def _as_value(node: Node, graph: Graph) -> Iterator[Node]:
    if node.op != "aten.copy.default" or node.meta is None:
        yield node
        return
    target, source = node.args[:2]
    copied = graph.meta(source.name)
    if copied is None or copied.dtype != node.meta.dtype:
        name, dtype = f"{node.name}.cast", getattr(torch, node.meta.dtype)
        meta = None if copied is None else replace(node.meta, shape=copied.shape)
        args = (source, dtype)
        cast = replace(node, name=name, op="aten.to.dtype", args=args, kwargs={}, meta=meta)
        yield cast
        source = Ref(cast.name)
    yield replace(node, op="aten.expand_as.default", args=(source, target), kwargs={})
