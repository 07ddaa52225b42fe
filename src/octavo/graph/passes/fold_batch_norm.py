"""Batch normalization in evaluation mode is an affine map per channel: fold it into the weights of
the convolution or linear layer before it (Jacob et al. 2018, arXiv:1712.05877, section 3.2).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from octavo.graph.graph import Graph, Node, Ref, map_refs
from octavo.graph.weighted_layers import WEIGHTED_LAYERS
from octavo.numerics.affine import broadcast

# Layers that a batch norm can be folded into.
_LAYERS = frozenset(
    """linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d""".split()
)


def fold_batch_norm(graph: Graph) -> Graph:
    """The graph with each batch norm that directly follows a layer of constant weights folded in.

    The folded layer keeps its own name and weight name; its bias is named ``<layer>.bias``. A batch
    norm stays where something else reads the layer's output or its weights, and where it runs over
    another axis than the layer's output channels.
    """
    constants = dict(graph.constants)
    folded: dict[str, Node] = {}
    same: dict[str, str] = {}
    for name, norm in foldable_norms(graph).items():
        layer = graph.by_name[name]
        own = (*layer.args[1:3], None)[:2]
        tensors = [None if ref is None else constants[ref.name] for ref in (*own, *norm.args[1:5])]
        weight, bias = folded_tensors(layer, norm, *tensors)  # type: ignore[arg-type]
        constants[layer.args[1].name] = weight
        constants[bias_name(layer)] = bias
        args = (layer.args[0], layer.args[1], Ref(bias_name(layer)), *layer.args[3:])
        folded[name] = replace(layer, args=args)
        same[norm.name] = name
    nodes = tuple(
        folded.get(node.name, node).renamed(same) for node in graph.nodes if node.name not in same
    )
    outputs = map_refs(graph.outputs, lambda ref: Ref(same.get(ref.name, ref.name)))
    return replace(graph, nodes=nodes, constants=constants, outputs=outputs).pruned()


def foldable_norms(graph: Graph) -> dict[str, Node]:
    """For each layer that a batch norm can be folded into, that batch norm."""
    found = {}
    for norm in graph.nodes:
        layer = graph.by_name.get(norm.args[0].name) if _is_inference_norm(norm) else None
        if layer is not None and _can_fold(layer, graph):
            found[layer.name] = norm
    return found


def folded_tensors(
    layer: Node,
    norm: Node,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    variance: Tensor,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``norm(layer(x))``, computed in float64.

    ``w' = w * gamma / sqrt(var + eps)``, ``b' = (b - mean) * gamma / sqrt(var + eps) + beta``.
    """
    factor = torch.rsqrt(variance.double() + norm.args[7])
    if gamma is not None:
        factor = factor * gamma.double()
    shift = -mean.double() if bias is None else bias.double() - mean.double()
    shift = shift * factor + (0.0 if beta is None else beta.double())
    return scaled(weight.double(), factor, layer).to(weight.dtype), shift.to(weight.dtype)


def bias_name(layer: Node) -> str:
    """The name of a folded layer's bias."""
    return f"{layer.name}.bias"


def scaled(weight: Tensor, factor: Tensor, layer: Node) -> Tensor:
    """A layer's weight with each output channel multiplied by its factor, ``[out]``.

    A transposed convolution's is ``[in, out / groups, *kernel]``, its inputs in groups.
    """
    if not layer.short_op.startswith("conv_transpose"):
        return weight * broadcast(factor, weight.dim(), 0)
    groups = WEIGHTED_LAYERS[layer.short_op].groups_of(layer)
    split = weight.reshape(groups, -1, *weight.shape[1:])
    factors = factor.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
    return (split * factors).reshape(weight.shape)


def _is_inference_norm(node: Node) -> bool:
    return node.op == "aten.batch_norm.default" and node.args[3] is not None and not node.args[5]


def _can_fold(layer: Node, graph: Graph) -> bool:
    if layer.short_op not in _LAYERS or layer.op.endswith(".padding"):
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
    alone = all(len(graph.users[name]) == 1 and name not in leaving for name in (layer.name, *own))
    return (
        over_channels and alone and (bias_name(layer) in own or bias_name(layer) not in graph.users)
    )
