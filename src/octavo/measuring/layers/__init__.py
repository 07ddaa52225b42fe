"""What quantization did, layer by layer, and which layers it hurts."""

from octavo.measuring.layers.distributions import Distribution, distributions
from octavo.measuring.layers.error_table import LayerError, LayerErrors
from octavo.measuring.layers.layer_errors import layer_errors
from octavo.measuring.layers.sensitivity import LayerSensitivity, Sensitivity, sensitivity

__all__ = [
    "Distribution",
    "LayerError",
    "LayerErrors",
    "LayerSensitivity",
    "Sensitivity",
    "distributions",
    "layer_errors",
    "sensitivity",
]
