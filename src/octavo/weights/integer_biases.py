"""Biases as integer kernels add them: whole multiples of the step of a layer's sums.

A sum of integer products counts in steps of ``input scale * weight scale``, and ONNX Runtime, like
every kernel without floats, adds an int32 bias to it (Jacob et al. 2018, arXiv:1712.05877, section
2.4). A step of the output is hundreds of those, so nothing is lost by rounding; but a model whose
biases lie between them is another model there, one result in a thousand a step off.

Steps of a channel whose weights are near zero are tiny, and its bias may be more of them than an
int32 counts: such a channel gets a larger scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from octavo.affine import QParams
from octavo.graph import Graph, Node, Ref
from octavo.plan import Plan
from octavo.weights.bias_correction import own_bias

_LAYERS = frozenset({"linear", "conv1d", "conv2d", "conv3d"})
_TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
# Steps that a bias may have: half of int32, whose other half is for the sum of the products.
LARGEST_BIAS = 2**30


def integer_bias(bias: Tensor, step: Tensor) -> Tensor:
    """The nearest multiples of the steps, half to even.

    Args:
        bias: float ``[out]``.
        step: input scale times weight scale, float ``[]`` or ``[out]``, positive.

    Example:
        >>> integer_bias(torch.tensor([1.1, -0.9]), torch.tensor([0.5, 0.25]))
        tensor([ 1., -1.])
    """
    exact = step.double()
    return (torch.round(bias.double() / exact) * exact).to(bias.dtype)


def integer_biases(graph: Graph, plan: Plan, qparams: Mapping[str, QParams]) -> Graph:
    """The float graph with a bias that is made of its sums' steps for each layer in static int8.

    Layers keep theirs whose weights have zero points, scales of groups or fewer than eight bits:
    their kernels are others.

    Args:
        graph: the canonical float graph; it is left as it is.
        plan: made for that graph.
        qparams: of its activations and weights, by name.
    """
    users = graph.users()
    constants = dict(graph.constants)
    nodes = []
    for node in graph.nodes:
        step = _step(node, graph, plan, qparams)
        if step is not None:
            bias, own = constants[node.args[2].name], own_bias(node, users)
            constants[own] = integer_bias(bias, step.to(bias.device))
            node = replace(node, args=(*node.args[:2], Ref(own), *node.args[3:]))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes), constants=constants).pruned()


def room_for_biases(graph: Graph, plan: Plan, qparams: Mapping[str, QParams]) -> dict[str, QParams]:
    """The qparams, weight scales raised where a bias would be no int32 in steps of its sums.

    That is a channel which has a bias and next to no weights: a pruned filter, or a batch norm with
    a factor near zero. ONNX Runtime's own quantizer does the same (microsoft/onnxruntime #21000).

    Args:
        graph: the canonical float graph.
        plan: made for that graph.
        qparams: of its activations and weights, by name.
    """
    found = dict(qparams)
    for node in graph.nodes:
        if node.short_op in _LAYERS | _TRANSPOSED and _adds_integers(node, graph, plan, found):
            given, weight, bias = (ref.name for ref in node.args[:3])
            largest = graph.constants[bias].detach().abs() / found[given].scale.item()
            found[weight] = _raised(found[weight], largest / LARGEST_BIAS)
    return found


def _raised(weight: QParams, least: Tensor) -> QParams:
    """Scales that are no smaller than those of each output ``[out]``."""
    # Groups of a transposed convolution share their scales.
    least = least.reshape(-1, weight.scale.numel()).amax(0).to(weight.scale)
    least = least.reshape(weight.scale.shape)
    if bool((least <= weight.scale).all()):
        return weight
    if weight.scheme.power_of_two:
        least = torch.exp2(torch.ceil(torch.log2(least)))
    return replace(weight, scale=torch.maximum(weight.scale, least))


def _adds_integers(node: Node, graph: Graph, plan: Plan, qparams: Mapping[str, QParams]) -> bool:
    """Whether a layer adds a constant bias to sums of integers that have one step a channel."""
    bias = node.args[2] if len(node.args) > 2 else None
    if bias is None or bias.name not in graph.constants or not plan.runs_int8(node.name):
        return False
    given, weight = (qparams.get(ref.name) for ref in node.args[:2])
    return given is not None and weight is not None and weight.scheme.group_size is None


def _step(node: Node, graph: Graph, plan: Plan, qparams: Mapping[str, QParams]) -> Tensor | None:
    """One for each channel or for all; ``None`` where the layer's bias stays as it is."""
    if node.short_op not in _LAYERS or not _adds_integers(node, graph, plan, qparams):
        return None
    given, weight = (qparams[ref.name] for ref in node.args[:2])
    # Integer kernels take eight bits; with fewer a step of the sums is no small thing.
    narrow = min(given.scheme.integers.bits, weight.scheme.integers.bits) < 8
    if narrow or bool(weight.zero_point.any()):
        return None
    # In float32, as the scale of the int32 bias is written.
    return weight.scale * given.scale.item()
