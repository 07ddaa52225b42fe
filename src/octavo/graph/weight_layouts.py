"""Layers with weights: where the weights stand and which of their axes means what, as data.

Tested in tests/test_every_layer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from octavo.graph.graph import Node, refs_in
from octavo.graph.operators import arguments


@dataclass(frozen=True)
class WeightLayout:
    """A layer operator.

    Attributes:
        output_axis: the axis of a weight that runs over output channels, or rows of a table.
        input: the argument that the weights are applied to; ``None`` for a table, which is only
            looked up.
        weights: the arguments that are weights, or lists of them.
        input_axis: the axis of the input that runs over input channels, where it is one weight
            that is applied to it.
    """

    output_axis: int = 0
    input: str | None = "input"
    weights: tuple[str, ...] = ("weight",)
    input_axis: int | None = None

    def weights_of(self, node: Node, constants: Mapping[str, Tensor]) -> list[str]:
        """The names of the constant weights (not biases) of a node."""
        given = arguments(node)
        names = dict.fromkeys(refs_in([given[name] for name in self.weights]))
        return [name for name in names if name in constants and constants[name].dim() > 1]


_CONV = WeightLayout(input_axis=1)
_TRANSPOSED = WeightLayout(output_axis=1, input_axis=1)
_RECURRENT = WeightLayout(weights=("params",))
_CELL = WeightLayout(weights=("w_ih", "w_hh"))
_TABLE = WeightLayout(input=None)


def groups_of(node: Node) -> int:
    """The number of groups of a convolution, 1 for other layers."""
    return int(arguments(node).get("groups", 1))


def is_depthwise(groups: int, weight: Tensor) -> bool:
    """Whether int8 kernels take a convolution as depthwise, and sum no products of two inputs.

    In 3-d, and for one channel in all, oneDNN takes kernels that sum pairs.
    """
    return weight.dim() < 5 and groups == weight.shape[0] > 1 == weight.shape[1]


# By short name of the operator.
WEIGHT_LAYOUTS = {
    "linear": WeightLayout(input_axis=-1),
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
    "lstm_cell": _CELL,
    "gru_cell": _CELL,
    "rnn_tanh_cell": _CELL,
    "rnn_relu_cell": _CELL,
    "embedding": _TABLE,
    "embedding_bag": _TABLE,
}
