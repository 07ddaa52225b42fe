"""The layers whose weights become integers, as weight methods see them.

Tested in tests/quantization/weights/test_method.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.operators import arguments, with_arguments
from octavo.graph.rewrite import Constant, Part, rewrite
from octavo.graph.weight_layouts import WEIGHT_LAYOUTS, WeightLayout, groups_of
from octavo.numerics.affine import QParams
from octavo.numerics.scheme import Scheme
from octavo.quantization.plan import Plan


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer and one of its weights, in float; what the plan says of them.

    Attributes:
        node: its call in the graph.
        runs: as in the plan: ``"int8"`` (its input has a fixed scale), ``"dynamic"`` or
            ``"weight_only"``.
        weight_name: of the constant.
        weight: float, in the shape that its operator takes: ``[out, in]`` of a linear layer,
            ``[out, in / groups, *kernel]`` of a convolution, ``[in, out / groups, *kernel]`` of a
            transposed one.
        scheme: of the weight's integers.
        input: the tensor that the weight is applied to; ``None`` where that is not an input of its
            own: a table, a recurrent layer.
        bias: float ``[out]``; ``None`` where it has none.
        takes_bias: whether it may get another one: it has one weight, and its bias is not a result.
    """

    node: Node
    runs: str
    weight_name: str
    weight: Tensor
    scheme: Scheme
    input: str | None
    bias: Tensor | None
    takes_bias: bool

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def layout(self) -> WeightLayout:
        """Where the input has its channels, and the weight its outputs."""
        return WEIGHT_LAYOUTS[self.node.short_op]

    @property
    def has_own_rows(self) -> bool:
        """Whether a weight ``[out, in]`` has scales for each row, or for groups of it."""
        in_rows = self.scheme.group_size is not None or self.scheme.channel_axis == 0
        return self.weight.dim() == 2 and in_rows

    @property
    def outputs(self) -> int:
        """How many output channels it has."""
        axis = self.layout.output_axis
        return self.weight.shape[axis] * (groups_of(self.node) if axis == 1 else 1)


@dataclass(frozen=True)
class Rounded:
    """The weight and the bias of a layer, as far as they are quantized by now.

    Attributes:
        integers: of the weight, in its shape and in the type that is stored.
        qparams: of the weight.
        bias: float ``[out]``, or ``None``.
        input: the qparams of the layer's input, where they are fixed.
    """

    integers: Tensor
    qparams: QParams
    bias: Tensor | None = None
    input: QParams | None = None


def quantized_layers(graph: Graph, plan: Plan) -> list[Layer]:
    """The layers that read integers for weights, in order; one with several weights for each.

    Args:
        graph: the canonical float graph.
        plan: made for that graph.
    """
    layers = []
    for node in graph.nodes:
        if node.short_op in WEIGHT_LAYOUTS and plan.reads_integers(node.name):
            for weight in WEIGHT_LAYOUTS[node.short_op].weights_of(node, graph.constants):
                planned = plan.quantized.get(weight)
                if planned is not None and planned.spec is not None:
                    runs = plan.tensors[node.name].runs
                    layers.append(layer_of(graph, node, runs, weight, planned.spec.scheme))
    return layers


def layer_of(graph: Graph, node: Node, runs: str, weight: str, scheme: Scheme) -> Layer:
    """One of `quantized_layers`."""
    alone = WEIGHT_LAYOUTS[node.short_op].input_axis is not None
    given = arguments(node)
    name = given["bias"] if alone else None
    bias = graph.constant(name)
    return Layer(
        node=node,
        runs=runs,
        weight_name=weight,
        weight=graph.constants[weight].detach(),
        scheme=scheme,
        input=given["input"].name if alone else None,
        bias=None if bias is None else bias.detach(),
        takes_bias=alone and (name is None or bias is not None),
    )


def with_biases(graph: Graph, biases: Mapping[str, Tensor | None]) -> Graph:
    """The graph with other biases, each a layer's own.

    Args:
        graph: the canonical float graph; it is left as it is.
        biases: layer -> bias, float ``[out]``, or ``None`` for none.
    """

    def with_own(node: Node) -> Iterator[Part]:
        bias = biases.get(node.name)
        if bias is not None:
            own = _own_bias(node, graph)
            yield Constant(own, bias)
            yield with_arguments(node, bias=Ref(own))
        else:
            yield with_arguments(node, bias=None) if node.name in biases else node

    return rewrite(graph, with_own)


def _own_bias(node: Node, graph: Graph) -> str:
    """The name of a bias that no other layer reads: its present one, or a new one."""
    bias = arguments(node)["bias"]
    if bias is not None and graph.only_user(bias.name) is not None:
        return str(bias.name)
    name = f"{node.name}.bias"
    return name if name not in graph.users else f"{node.name}.corrected_bias"
