"""Linear layers that read the same integers become one product: queries, keys and values, say.

One large product is quicker than several small ones, and there is one call instead of several. Only
layers with float results are joined, since integers have scales of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from octavo.graph.graph import Graph, Node, Ref, TensorMeta
from octavo.graph.qdq import DEQUANTIZE, DEQUANTIZE_CHANNELS, DYNAMIC, QUANTIZE

_SPLIT = "aten.split_with_sizes.default"


def join_siblings(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """The graph with joined layers, and for each of these the layer that takes its place.

    A joined layer's name is that of the part of the result that was its own.
    """
    families: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if _can_join(node, graph):
            families.setdefault(node.args[0].name, []).append(node)
    joined: dict[str, str] = {}
    constants = dict(graph.constants)
    made: dict[str, list[Node]] = {}
    for source, family in families.items():
        if len(family) > 1:
            name = f"{source}.joined"
            made[family[0].name] = _joined(name, family, graph, constants)
            joined |= {node.name: name for node in family}
    result = []
    for node in graph.nodes:
        if node.name in made:
            result += made[node.name]
        elif node.name not in joined:
            result.append(node)
    return replace(graph, nodes=tuple(result), constants=constants).pruned(), joined


def weights_in_joined(graph: Graph, joined: Mapping[str, str]) -> dict[str, tuple[str, slice]]:
    """For each weight of a joined layer the weight that it is a part of, with its rows there.

    Args:
        graph: before layers were joined.
        joined: from `join_siblings`.
    """
    found = {}
    used: dict[str, int] = {}
    for node in graph.nodes:
        if node.name in joined:
            whole = joined[node.name]
            name = graph.by_name[node.args[1].name].args[0].name
            start = used.get(whole, 0)
            used[whole] = start + len(graph.constants[name])
            found[name] = (f"{whole}.weight", slice(start, used[whole]))
    return found


def _can_join(node: Node, graph: Graph) -> bool:
    if node.short_op != "linear" or not all(isinstance(arg, Ref) for arg in node.args[:2]):
        return False
    source, weight = (graph.by_name.get(arg.name) for arg in node.args[:2])
    bias = node.args[2] if len(node.args) > 2 else None
    return (
        source is not None
        and source.op in (DEQUANTIZE, DYNAMIC)
        and weight is not None
        and weight.op == DEQUANTIZE_CHANNELS
        and weight.args[3] == 0
        and weight.args[0].name in graph.constants
        and (bias is None or bias.name in graph.constants)
        and not any(user.op == QUANTIZE for user in graph.users[node.name])
        and node.meta is not None
    )


def _joined(
    name: str, family: list[Node], graph: Graph, constants: dict[str, Tensor]
) -> list[Node]:
    """The nodes of one large layer; its constants are added."""
    weights = [graph.by_name[node.args[1].name] for node in family]
    parts = [[constants[ref.name] for ref in weight.args[:3]] for weight in weights]
    sizes = [len(part[0]) for part in parts]
    biases = [node.args[2] if len(node.args) > 2 else None for node in family]
    names = [f"{name}.{part}" for part in ("weight", "weight_scale", "weight_zero_point", "bias")]
    for key, tensors in zip(names, zip(*parts, strict=True), strict=False):
        constants[key] = torch.cat(tensors)
    constants[names[3]] = torch.cat(
        [
            torch.zeros(size) if bias is None else constants[bias.name]
            for size, bias in zip(sizes, biases, strict=True)
        ]
    )
    meta = family[0].meta
    assert meta is not None
    whole = TensorMeta((*meta.shape[:-1], sum(sizes)), meta.dtype)
    matrix = TensorMeta((sum(sizes), constants[names[0]].shape[1]), "float32")
    read = (*map(Ref, names[:3]), 0)
    layer = (family[0].args[0], Ref(f"{name}.weight.dequantized"), Ref(names[3]))
    split = f"{name}.split"
    return [
        Node(f"{name}.weight.dequantized", DEQUANTIZE_CHANNELS, read, meta=matrix),
        replace(family[0], name=name, args=layer, meta=whole),
        Node(split, _SPLIT, (Ref(name), sizes, -1)),
        *(
            replace(node, op="python.getitem", args=(Ref(split), index), kwargs={})
            for index, node in enumerate(family)
        ),
    ]
