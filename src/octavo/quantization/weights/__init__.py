"""From float weights to integers, scales and biases: one method a file, and rounding to nearest
where there is none. See `WeightMethod` for what a method says.
"""

from octavo.quantization.weights.adaround import AdaRound
from octavo.quantization.weights.awq import AWQ
from octavo.quantization.weights.bias_correction import (
    Average,
    BiasCorrection,
    bias_correction,
    correct_biases,
    input_means,
    with_correction,
)
from octavo.quantization.weights.clip import Clip
from octavo.quantization.weights.gptq import GPTQ
from octavo.quantization.weights.hqq import HQQ
from octavo.quantization.weights.integer_biases import (
    IntegerBiases,
    integer_bias,
    step_of_sums,
    with_room,
)
from octavo.quantization.weights.layers import Layer, Rounded, quantized_layers
from octavo.quantization.weights.method import METHODS, Statistic, WeightMethod
from octavo.quantization.weights.rescaling import Rescaling
from octavo.quantization.weights.rotation import Rotation
from octavo.quantization.weights.rounding import (
    Measured,
    RoundedGraph,
    applied,
    measured,
    round_weights,
)
from octavo.quantization.weights.scales import qparams_of_weight
from octavo.quantization.weights.smoothquant import SmoothQuant

__all__ = [
    "AWQ",
    "GPTQ",
    "HQQ",
    "METHODS",
    "AdaRound",
    "Average",
    "BiasCorrection",
    "Clip",
    "IntegerBiases",
    "Layer",
    "Measured",
    "Rescaling",
    "Rotation",
    "Rounded",
    "RoundedGraph",
    "SmoothQuant",
    "Statistic",
    "WeightMethod",
    "applied",
    "bias_correction",
    "correct_biases",
    "input_means",
    "integer_bias",
    "measured",
    "qparams_of_weight",
    "quantized_layers",
    "round_weights",
    "step_of_sums",
    "with_correction",
    "with_room",
]
