"""Float layers of a quantized graph that compute in bfloat16.

Such a layer reads ``x.bfloat16``, has weights of two bytes, and makes ``<layer>.bfloat16``, which
others read in float32, under the layer's own name. Layers in a row hand on bfloat16.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from octavo.graph import Graph, Node, Ref, TensorMeta

_CAST = "aten.to.dtype"
_SUFFIX = ".bfloat16"


def in_bfloat16(graph: Graph, layers: Collection[str]) -> Graph:
    """The graph with some of its layers in bfloat16.

    Args:
        graph: a quantized graph.
        layers: names of convolutions and linear layers that read float32.
    """
    users = graph.users()
    metas = {name: TensorMeta.of(t) for name, t in graph.constants.items()} | graph.metas()
    constants = dict(graph.constants)
    nodes: list[Node] = []
    narrow: dict[str, str] = {}  # value -> where it is in bfloat16

    def cast(name: str, source: str, dtype: torch.dtype) -> Node:
        meta = metas[name.removesuffix(_SUFFIX)]
        assert meta is not None
        own = replace(meta, dtype=str(dtype).removeprefix("torch."))
        return Node(name, _CAST, (Ref(source), dtype), meta=own)

    for node in graph.nodes:
        if node.name not in layers:
            nodes.append(node)
            continue
        for name in node.refs():
            if name in narrow:
                continue
            if name in constants and all(user.name in layers for user in users[name]):
                constants[name] = constants[name].to(torch.bfloat16)
                narrow[name] = name
            else:
                narrow[name] = f"{name}{_SUFFIX}"
                nodes.append(cast(narrow[name], name, torch.bfloat16))
        result = f"{node.name}{_SUFFIX}"
        assert node.meta is not None
        meta = replace(node.meta, dtype="bfloat16")
        nodes.append(replace(node.renamed(narrow), name=result, meta=meta))
        nodes.append(cast(node.name, result, torch.float32))
        narrow[node.name] = result
    return replace(graph, nodes=tuple(nodes), constants=constants).pruned()


def in_float32(graph: Graph) -> Graph:
    """The graph with such layers in float32, for runtimes that have no bfloat16.

    Weights keep the values that two bytes have; what is read and made is not rounded to them.
    """
    wide = {
        node.name: node.name.removesuffix(_SUFFIX)
        for node in graph.nodes
        if node.name.endswith(_SUFFIX) and node.meta is not None and node.meta.dtype == "bfloat16"
    }
    constants = dict(graph.constants)
    nodes = []
    for node in graph.nodes:
        meta = node.meta
        if node.name in wide and meta is not None:
            meta = replace(meta, dtype="float32")
            weights = {name: constants[name] for name in node.refs() if name in constants}
            constants |= {name: tensor.to(torch.float32) for name, tensor in weights.items()}
        name = wide.get(node.name, node.name)
        widened = replace(node.renamed(wide), name=name, meta=meta)
        if node.op != _CAST or widened.args[0] != Ref(name):
            nodes.append(widened)
    return replace(graph, nodes=tuple(nodes), constants=constants)
