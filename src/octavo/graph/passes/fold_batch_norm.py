"""Batch normalization in evaluation mode is an affine map per channel: fold it into the weights of
the convolution or linear layer before it (Jacob et al. 2018, arXiv:1712.05877, section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.operators import arguments, with_arguments
from octavo.graph.rewrite import Constant, Part, rewrite
from octavo.graph.weight_layouts import groups_of
from octavo.numerics.affine import broadcast

NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
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
    norms = foldable_norms(graph)
    layers = {norm.name: Ref(name) for name, norm in norms.items()}

    def folded(node: Node) -> Part | Iterator[Part]:
        norm = norms.get(node.name)
        return layers.get(node.name, node) if norm is None else _folded(node, norm, graph)

    return rewrite(graph, folded)


def _folded(layer: Node, norm: Node, graph: Graph) -> Iterator[Part]:
    given = arguments(layer)
    refs = (given["weight"], given["bias"], *tensors_of(norm))
    tensors = [None if ref is None else graph.constants[ref.name] for ref in refs]
    weight, bias = Folding.of(layer, norm).folded(*tensors)  # type: ignore[arg-type]
    yield Constant(given["weight"].name, weight)
    yield Constant(bias_name(layer), bias)
    yield with_arguments(layer, bias=Ref(bias_name(layer)))


def foldable_norms(graph: Graph) -> dict[str, Node]:
    """For each layer that a batch norm can be folded into, that batch norm."""
    norms = {}
    for norm in graph.nodes:
        layer = graph.producer(norm.args[0]) if _is_inference_norm(norm) else None
        if layer is not None and _can_fold(layer, graph):
            norms[layer.name] = norm
    return norms


@dataclass(frozen=True)
class Folding:
    """What folding a batch norm into a layer takes besides their tensors.

    Attributes:
        eps: of the norm.
        groups: of a transposed convolution; ``None`` for other layers.
    """

    eps: float
    groups: int | None

    @classmethod
    def of(cls, layer: Node, norm: Node) -> Folding:
        transposed = layer.short_op.startswith("conv_transpose")
        return cls(arguments(norm)["eps"], groups_of(layer) if transposed else None)

    def folded(
        self,
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
        factor = torch.rsqrt(variance.double() + self.eps)
        if gamma is not None:
            factor = factor * gamma.double()
        shift = -mean.double() if bias is None else bias.double() - mean.double()
        shift = shift * factor + (0.0 if beta is None else beta.double())
        return self.scaled(weight.double(), factor).to(weight.dtype), shift.to(weight.dtype)

    def scaled(self, weight: Tensor, factor: Tensor) -> Tensor:
        """The layer's weight with each output channel multiplied by its factor, ``[out]``.

        A transposed convolution's is ``[in, out / groups, *kernel]``, its inputs in groups.
        """
        if self.groups is None:
            return weight * broadcast(factor, weight.dim(), 0)
        split = weight.reshape(self.groups, -1, *weight.shape[1:])
        factors = factor.reshape(self.groups, 1, -1, *[1] * (weight.dim() - 2))
        return (split * factors).reshape(weight.shape)


def tensors_of(norm: Node) -> list[Ref | None]:
    """Weight, bias and running statistics of a batch norm."""
    given = arguments(norm)
    return [given[name] for name in NORM_TENSORS]


def bias_name(layer: Node) -> str:
    """The name of a folded layer's bias."""
    return f"{layer.name}.bias"


def _is_inference_norm(node: Node) -> bool:
    if node.op != "aten.batch_norm.default":
        return False
    given = arguments(node)
    return given["running_mean"] is not None and not given["training"]


def _can_fold(layer: Node, graph: Graph) -> bool:
    if layer.short_op not in _LAYERS or layer.op.endswith(".padding"):
        return False
    given = arguments(layer)
    weight, bias = given["weight"], given["bias"]
    own = [ref.name for ref in (weight, bias) if ref is not None]
    if not all(name in graph.constants for name in own):
        return False
    # A batch norm runs over axis 1: a linear layer's channels only where its result is 2-D.
    over_channels = layer.meta is not None and (
        len(layer.meta.shape) == graph.constants[weight.name].dim()
    )
    alone = all(graph.only_user(name) is not None for name in (layer.name, *own))
    return (
        over_channels and alone and (bias_name(layer) in own or bias_name(layer) not in graph.users)
    )
