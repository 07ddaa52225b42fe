"""Float layers of a quantized graph that compute in bfloat16.

Such a layer reads ``x.bfloat16``, has weights of two bytes, and makes ``<layer>.bfloat16``, which
others read in float32, under the layer's own name. Layers in a row hand on bfloat16.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import torch

from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.qdq import is_own
from octavo.graph.rewrite import Constant, Part, rewrite
from octavo.graph.weight_layouts import WEIGHT_LAYOUTS
from octavo.quantization.targets import PRODUCT, ROLES, WEIGHTED

CAST = "aten.to.dtype"
SUFFIX = ".bfloat16"
_GETITEM = "python.getitem"


def in_precision(graph: Graph, precision: str) -> Graph:
    """The graph with all that stays float in one precision.

    Args:
        graph: a quantized graph.
        precision: ``"float32"``, or ``"bfloat16"``: float convolutions, linear layers and products
            of activations compute in it, and so do recurrent layers, whose integers are read as
            floats. All else (sums, normalizations, functions) is float32 in both.
    """
    wide = in_float32(graph)
    return wide if precision == "float32" else in_bfloat16(wide, float_layers(wide))


def float_layers(graph: Graph) -> set[str]:
    """Names of the layers and products that read and make float32, and no integers."""

    def is_float(name: str) -> bool:
        meta = graph.meta(name)
        return meta is not None and meta.dtype == "float32"

    layers = set()
    for node in graph.nodes:
        role, layer = ROLES.get(node.short_op), WEIGHT_LAYOUTS.get(node.short_op)
        if role == WEIGHTED and layer is not None:
            recurrent = layer.input_axis is None
            computes_in_float = recurrent or bool(layer.weights_of(node, graph.constants))
        else:
            recurrent = False
            of_integers = any(is_own(graph.by_name[n]) for n in node.refs() if n in graph.by_name)
            computes_in_float = role == PRODUCT and not of_integers
        in_float = all(map(is_float, (*node.refs(), *(() if recurrent else (node.name,)))))
        if computes_in_float and in_float and not is_own(node):
            layers.add(node.name)
    return layers


def in_bfloat16(graph: Graph, layers: Collection[str]) -> Graph:
    """The graph with some of its layers in bfloat16.

    Args:
        graph: a quantized graph.
        layers: names of `float_layers`. The results of one that has several are read by their
            index, each in float32.
    """
    layers = set(layers)
    layers |= {
        node.name for node in graph.nodes if node.op == _GETITEM and node.args[0].name in layers
    }
    narrow: dict[str, str] = {}  # value -> where it is in bfloat16

    def cast(name: str, source: str, dtype: torch.dtype) -> Node:
        meta = graph.meta(name.removesuffix(SUFFIX))
        assert meta is not None
        own = replace(meta, dtype=str(dtype).removeprefix("torch."))
        return Node(name, CAST, (Ref(source), dtype), meta=own)

    def narrowed(node: Node) -> Iterator[Part]:
        if node.name not in layers:
            yield node
            return
        for name in dict.fromkeys(node.refs()):
            if name in narrow:
                continue
            constant = graph.constants.get(name)
            if constant is not None and all(u.name in layers for u in graph.users[name]):
                yield Constant(name, constant.to(torch.bfloat16))
                narrow[name] = name
            else:
                narrow[name] = f"{name}{SUFFIX}"
                yield cast(narrow[name], name, torch.bfloat16)
        result = f"{node.name}{SUFFIX}"
        meta = None if node.meta is None else replace(node.meta, dtype="bfloat16")
        yield replace(node.renamed(narrow), name=result, meta=meta)
        if meta is not None:
            yield cast(node.name, result, torch.float32)
        narrow[node.name] = result

    return rewrite(graph, narrowed)


def in_float32(graph: Graph) -> Graph:
    """The graph with such layers in float32, for runtimes that have no bfloat16.

    Weights keep the values that two bytes have; what is read and made is not rounded to them.
    """
    wide = {
        node.name: node.name.removesuffix(SUFFIX)
        for node in graph.nodes
        if node.name.endswith(SUFFIX) and (node.meta is None or node.meta.dtype == "bfloat16")
    }

    def widened(node: Node) -> Iterator[Part]:
        if node.name in wide:
            yield Ref(wide[node.name])
            for name in node.refs():
                if name in graph.constants and graph.constants[name].dtype == torch.bfloat16:
                    yield Constant(name, graph.constants[name].to(torch.float32))
            meta = None if node.meta is None else replace(node.meta, dtype="float32")
            node = replace(node, name=wide[node.name], meta=meta)
        if node.op != CAST or node.args[0] != Ref(node.name):
            yield node

    return rewrite(graph, widened)
