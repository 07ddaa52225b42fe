"""Batch normalization in evaluation mode is an affine map per channel: fold it into the weights of
the convolution or linear layer before it (Jacob et al. 2018, arXiv:1712.05877, section 3.2).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from octavo.affine import broadcast
from octavo.graph import Graph, Node, Ref, map_refs

# Operator -> axis of its weight that runs over output channels.
_OUTPUT_AXIS = {
    "aten.conv1d.default": 0,
    "aten.conv2d.default": 0,
    "aten.conv3d.default": 0,
    "aten.linear.default": 0,
}


def fold_batch_norm(graph: Graph) -> Graph:
    """The graph with each batch norm that directly follows a layer of constant weights folded in.

    The folded layer keeps its own name and weight name; its bias is named ``<layer>.bias``. A batch
    norm stays where something else reads the layer's output or its weights, and where it runs over
    another axis than the layer's output channels.
    """
    users = graph.users()
    producers = {node.name: node for node in graph.nodes}
    constants = dict(graph.constants)
    folded: dict[str, Node] = {}
    same: dict[str, str] = {}
    for norm in graph.nodes:
        layer = producers.get(norm.args[0].name) if _is_inference_norm(norm) else None
        if layer is None or not _can_fold(layer, graph, users):
            continue
        weight, bias = _folded(layer, norm, constants)
        bias_name = f"{layer.name}.bias"
        constants[layer.args[1].name] = weight
        constants[bias_name] = bias
        args = (layer.args[0], layer.args[1], Ref(bias_name), *layer.args[3:])
        folded[layer.name] = replace(layer, args=args)
        same[norm.name] = layer.name
    nodes = tuple(
        folded.get(node.name, node).renamed(same) for node in graph.nodes if node.name not in same
    )
    outputs = map_refs(graph.outputs, lambda ref: Ref(same.get(ref.name, ref.name)))
    return replace(graph, nodes=nodes, constants=constants, outputs=outputs).pruned()


def _is_inference_norm(node: Node) -> bool:
    return node.op == "aten.batch_norm.default" and node.args[3] is not None and not node.args[5]


def _can_fold(layer: Node, graph: Graph, users: dict[str, list[Node]]) -> bool:
    if layer.op not in _OUTPUT_AXIS:
        return False
    weight, bias = (*layer.args[1:3], None)[:2]
    own = [ref.name for ref in (weight, bias) if ref is not None]
    if not all(name in graph.constants for name in own):
        return False
    # A batch norm runs over axis 1: a linear layer's channels only where its result is 2-D.
    over_channels = layer.meta is not None and (
        len(layer.meta.shape) == graph.constants[weight.name].dim()
    )
    leaving = set(graph.output_names())
    alone = all(len(users[name]) == 1 and name not in leaving for name in (layer.name, *own))
    bias_name = f"{layer.name}.bias"
    return over_channels and alone and (bias_name in own or bias_name not in users)


def _folded(layer: Node, norm: Node, constants: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``norm(layer(x))``, computed in float64.

    ``w' = w * gamma / sqrt(var + eps)``, ``b' = (b - mean) * gamma / sqrt(var + eps) + beta``.
    """
    values = [None if ref is None else constants[ref.name].double() for ref in norm.args[1:5]]
    gamma, beta, mean, variance = values
    assert mean is not None and variance is not None
    factor = torch.rsqrt(variance + norm.args[7])
    if gamma is not None:
        factor = factor * gamma
    weight = constants[layer.args[1].name]
    bias_ref = layer.args[2] if len(layer.args) > 2 else None
    bias = -mean if bias_ref is None else constants[bias_ref.name].double() - mean
    bias = bias * factor + (0.0 if beta is None else beta)
    axis = _OUTPUT_AXIS[layer.op]
    scaled = weight.double() * broadcast(factor, weight.dim(), axis)
    return scaled.to(weight.dtype), bias.to(weight.dtype)
