"""Layers with a weight: which axis of weight and input means what, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WeightedLayer:
    """A layer operator whose arguments begin with input, weight and bias.

    Attributes:
        output_axis: the axis of the weight that runs over output channels.
        input_axis: the axis of the input that runs over input channels.
        groups: position of the number of groups among the arguments, ``None`` where there is none.
    """

    output_axis: int
    input_axis: int
    groups: int | None = None


# By short name of the operator.
WEIGHTED_LAYERS = {
    "linear": WeightedLayer(output_axis=0, input_axis=-1),
    "conv1d": WeightedLayer(output_axis=0, input_axis=1, groups=6),
    "conv2d": WeightedLayer(output_axis=0, input_axis=1, groups=6),
    "conv3d": WeightedLayer(output_axis=0, input_axis=1, groups=6),
}
