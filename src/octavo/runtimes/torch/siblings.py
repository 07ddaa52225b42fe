"""Linear layers that read the same integers become one product: queries, keys and values, say.

One large product is quicker than several small ones, and there is one call instead of several. Only
layers with float results are joined, since integers have scales of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch

from octavo.graph.graph import Graph, Node, Ref, TensorMeta
from octavo.graph.operators import arguments, with_arguments
from octavo.graph.qdq import (
    DEQUANTIZE,
    DEQUANTIZE_WEIGHT,
    DYNAMIC,
    QUANTIZE,
    QuantizedWeight,
    weight_behind,
)
from octavo.graph.rewrite import Constant, Part, rewrite

_SPLIT = "aten.split_with_sizes.default"


def join_siblings(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """The graph with joined layers, and for each of these the layer that takes its place.

    A joined layer's name is that of the part of the result that was its own.
    """
    families: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if _can_join(node, graph):
            families.setdefault(node.args[0].name, []).append(node)
    several = {f"{source}.joined": f for source, f in families.items() if len(f) > 1}
    joined = {node.name: name for name, family in several.items() for node in family}

    def with_joined(node: Node) -> Part | Iterable[Part]:
        name = joined.get(node.name)
        if name is None:
            return node
        family = several[name]
        return _joined(name, family, graph) if node.name == family[0].name else ()

    return rewrite(graph, with_joined), joined


def weights_in_joined(graph: Graph, joined: Mapping[str, str]) -> dict[str, tuple[str, slice]]:
    """For each weight of a joined layer the weight that it is a part of, with its rows there.

    Args:
        graph: before layers were joined.
        joined: from `join_siblings`.
    """
    places = {}
    used: dict[str, int] = {}
    for node in graph.nodes:
        if node.name in joined:
            whole = joined[node.name]
            weight = _weight(node, graph)
            start = used.get(whole, 0)
            used[whole] = start + weight.shape[0]
            places[weight.name] = (f"{whole}.weight", slice(start, used[whole]))
    return places


def _can_join(node: Node, graph: Graph) -> bool:
    if node.short_op != "linear" or node.meta is None:
        return False
    x, read, bias = arguments(node).values()
    source, weight = graph.producer(x), weight_behind(graph, read)
    return (
        source is not None
        and source.op in (DEQUANTIZE, DYNAMIC)
        and weight is not None
        and weight.unpack is None
        and weight.channel_scale(0) is not None
        and (bias is None or bias.name in graph.constants)
        and not any(user.op == QUANTIZE for user in graph.users[node.name])
    )


def _weight(node: Node, graph: Graph) -> QuantizedWeight:
    weight = weight_behind(graph, arguments(node)["weight"])
    assert weight is not None
    return weight


def _joined(name: str, family: list[Node], graph: Graph) -> Iterator[Part]:
    """One large layer, its constants, and the part of each."""
    first, weights = family[0], [_weight(node, graph) for node in family]
    tensors = []
    for node, weight in zip(family, weights, strict=True):
        rows, bias = weight.shape[0], arguments(node)["bias"]
        scales = (values.expand(rows, 1) for values in (weight.scale, weight.zero_point))
        own = torch.zeros(rows) if bias is None else graph.constants[bias.name]
        tensors.append((weight.integers, *scales, own))
    sizes = [weight.shape[0] for weight in weights]
    names = [f"{name}.{part}" for part in ("weight", "weight_scale", "weight_zero_point", "bias")]
    for key, parts in zip(names, zip(*tensors, strict=True), strict=True):
        yield Constant(key, torch.cat(parts))
    assert first.meta is not None
    dequantized, split = f"{name}.weight.dequantized", f"{name}.split"
    matrix = TensorMeta((sum(sizes), weights[0].shape[1]), "float32")
    yield Node(dequantized, DEQUANTIZE_WEIGHT, tuple(map(Ref, names[:3])), meta=matrix)
    whole = replace(first.meta, shape=(*first.meta.shape[:-1], sum(sizes)))
    layer = with_arguments(first, weight=Ref(dequantized), bias=Ref(names[3]))
    yield replace(layer, name=name, meta=whole)
    yield Node(split, _SPLIT, (Ref(name), sizes, -1))
    for index, node in enumerate(family):
        yield replace(node, op="python.getitem", args=(Ref(split), index), kwargs={})
