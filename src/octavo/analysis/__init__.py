"""What quantization did, layer by layer, and which layers it hurts."""

from octavo.analysis.layer_errors import LayerError, LayerErrors, layer_errors
from octavo.analysis.sensitivity import LayerSensitivity, Sensitivity, sensitivity

__all__ = [
    "LayerError",
    "LayerErrors",
    "LayerSensitivity",
    "Sensitivity",
    "layer_errors",
    "sensitivity",
]
