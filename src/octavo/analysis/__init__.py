"""What quantization did, layer by layer, and which layers it hurts."""

from octavo.analysis.distributions import Distribution, distributions
from octavo.analysis.layer_errors import LayerError, LayerErrors, layer_errors
from octavo.analysis.sensitivity import LayerSensitivity, Sensitivity, sensitivity

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
