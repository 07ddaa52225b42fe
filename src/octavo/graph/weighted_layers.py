"""Layers with weights: where the weights stand and which of their axes means what, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from octavo.graph.graph import Node, refs_in


@dataclass(frozen=True)
class WeightedLayer:
    """A layer operator.

    Attributes:
        output_axis: the axis of a weight that runs over output channels, or rows of a table.
        input: position of the tensor that the weights are applied to; ``None`` for a table, which
            is only looked up.
        weights: position of the weight, or of the first of several.
        input_axis: the axis of the input that runs over input channels, where it is one weight
            that is applied to it.
        groups: position of the number of groups, ``None`` where there is none.
    """

    output_axis: int = 0
    input: int | None = 0
    weights: int = 1
    input_axis: int | None = None
    groups: int | None = None

    def weights_of(self, node: Node, constants: Mapping[str, Tensor]) -> list[str]:
        """The names of the constant weights (not biases) of a node."""
        following = node.args[self.weights :] if self.input_axis is None else node.args[1:2]
        names = list(dict.fromkeys(refs_in(following)))
        return [name for name in names if name in constants and constants[name].dim() > 1]

    def groups_of(self, node: Node) -> int:
        """The number of groups of a convolution, 1 for other layers."""
        given = self.groups is not None and len(node.args) > self.groups
        return int(node.args[self.groups]) if given else 1  # type: ignore[index]


_CONV = WeightedLayer(input_axis=1, groups=6)
_TRANSPOSED = WeightedLayer(output_axis=1, input_axis=1, groups=6)
_RECURRENT = WeightedLayer(weights=2)


def is_depthwise(node: Node, weight: Tensor) -> bool:
    """Whether int8 kernels take a convolution as depthwise, and sum no products of two inputs.

    In 3-d, and for one channel in all, oneDNN takes kernels that sum pairs.
    """
    layer = WEIGHTED_LAYERS[node.short_op]
    groups = layer.groups_of(node)
    return weight.dim() < 5 and groups == weight.shape[0] > 1 == weight.shape[1]


# By short name of the operator.
WEIGHTED_LAYERS = {
    "linear": WeightedLayer(input_axis=-1),
    "conv1d": _CONV,
    "conv2d": _CONV,
    "conv3d": _CONV,
    "conv_transpose1d": _TRANSPOSED,
    "conv_transpose2d": _TRANSPOSED,
    "conv_transpose3d": _TRANSPOSED,
    "lstm": _RECURRENT,
    "gru": _RECURRENT,
    "rnn_tanh": _RECURRENT,
    "rnn_relu": _RECURRENT,
    "lstm_cell": _RECURRENT,
    "gru_cell": _RECURRENT,
    "rnn_tanh_cell": _RECURRENT,
    "rnn_relu_cell": _RECURRENT,
    "embedding": WeightedLayer(input=None, weights=0),
}
