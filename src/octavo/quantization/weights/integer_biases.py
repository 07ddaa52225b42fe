"""Biases as integer kernels add them: whole multiples of the step of a layer's sums.

A sum of integer products counts in steps of ``input scale * weight scale``, and ONNX Runtime, like
every kernel without floats, adds an int32 bias to it (Jacob et al. 2018, arXiv:1712.05877, section
2.4). A step of the output is hundreds of those, so nothing is lost by rounding; but a model whose
biases lie between them is another model there, one result in a thousand a step off.

Steps of a channel whose weights are near zero are tiny, and its bias may be more of them than an
int32 counts: such a channel gets a larger scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.operators import arguments, with_arguments
from octavo.graph.rewrite import Constant, Part, rewrite
from octavo.numerics.affine import QParams
from octavo.quantization.plan import Plan
from octavo.quantization.weights.bias_correction import own_bias

_LAYERS = frozenset(
    """linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d""".split()
)
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


def with_room(weight: QParams, given: QParams, bias: Tensor) -> QParams:
    """A weight's qparams, scales raised where the bias would be no int32 in steps of its sums.

    That is a channel which has a bias and next to no weights: a pruned filter, or a batch norm with
    a factor near zero. ONNX Runtime's own quantizer does the same (microsoft/onnxruntime #21000).

    Args:
        weight: of the weight, without groups.
        given: of the layer's input.
        bias: float ``[out]``.
    """
    least = bias.detach().abs() / given.scale.detach().to(bias.device) / LARGEST_BIAS
    # Groups of a transposed convolution share their scales.
    least = least.reshape(-1, weight.scale.numel()).amax(0).to(weight.scale)
    if weight.scheme.power_of_two:
        least = torch.exp2(torch.ceil(torch.log2(least)))
    return replace(weight, scale=torch.maximum(weight.scale, least.reshape(weight.scale.shape)))


def step_of_sums(weight: QParams, given: QParams, outputs: int) -> Tensor:
    """Of each of so many output channels, or of all, in float32 as an int32 bias's scale is."""
    step = weight.scale * given.scale.to(weight.scale.device)
    # Groups of a transposed convolution share their scales.
    return step.repeat(outputs // len(step)) if step.dim() else step


@dataclass(frozen=True)
class Sums:
    """What a layer in static int8 adds up, by the names of the tensors.

    Attributes:
        given, weight, bias: its input, and the constants that it is multiplied with and added to.
    """

    given: str
    weight: str
    bias: str


def sums_with_biases(graph: Graph, plan: Plan) -> dict[str, Sums]:
    """The layers that add a constant bias to sums of integers which have one step a channel.

    Args:
        graph: the canonical float graph.
        plan: made for that graph.
    """
    found = {}
    for node in graph.nodes:
        if node.short_op not in _LAYERS or not plan.runs_int8(node.name):
            continue
        given = arguments(node)
        if given["bias"] is None:
            continue
        sums = Sums(*(given[name].name for name in ("input", "weight", "bias")))
        planned = plan.quantized.get(sums.weight)
        in_groups = planned is None or planned.spec is None or planned.spec.scheme.group_size
        if sums.given in plan.quantized and sums.bias in graph.constants and not in_groups:
            found[node.name] = sums
    return found


def room_for_biases(graph: Graph, plan: Plan, qparams: Mapping[str, QParams]) -> dict[str, QParams]:
    """The qparams, weight scales raised as `with_room` does.

    Args:
        graph: the canonical float graph.
        plan: made for that graph.
        qparams: of its activations and weights, by name.
    """
    found = dict(qparams)
    for sums in sums_with_biases(graph, plan).values():
        before = found[sums.weight]
        raised = with_room(before, found[sums.given], graph.constants[sums.bias])
        if not torch.equal(raised.scale, before.scale):
            found[sums.weight] = raised
    return found


def integer_biases(graph: Graph, plan: Plan, qparams: Mapping[str, QParams]) -> Graph:
    """The float graph with a bias that is made of its sums' steps for each layer in static int8.

    Args:
        graph: the canonical float graph; it is left as it is.
        plan: made for that graph.
        qparams: of its activations and weights, by name.
    """
    layers = sums_with_biases(graph, plan)

    def with_integers(node: Node) -> Iterator[Part]:
        sums = layers.get(node.name)
        if sums is not None:
            bias, own = graph.constants[sums.bias], own_bias(node, graph)
            step = step_of_sums(qparams[sums.weight], qparams[sums.given], len(bias))
            yield Constant(own, integer_bias(bias, step.to(bias.device)))
            node = with_arguments(node, bias=Ref(own))
        yield node

    return rewrite(graph, with_integers)
