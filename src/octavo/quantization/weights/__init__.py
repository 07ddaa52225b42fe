"""What can be done to weights and biases before rounding or because of it: one method a file."""

from octavo.quantization.weights.bias_correction import bias_correction, correct_biases
from octavo.quantization.weights.integer_biases import (
    Sums,
    integer_bias,
    integer_biases,
    room_for_biases,
    step_of_sums,
    sums_with_biases,
    with_room,
)

__all__ = [
    "Sums",
    "bias_correction",
    "correct_biases",
    "integer_bias",
    "integer_biases",
    "room_for_biases",
    "step_of_sums",
    "sums_with_biases",
    "with_room",
]
