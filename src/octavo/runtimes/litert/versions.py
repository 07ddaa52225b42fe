"""Which version of an operator a model asks for: the first that has what it uses.

The numbers are those of TensorFlow's ``lite/tools/versioning/op_version.cc``. A runtime refuses a
model that asks for a later one than it knows.

Tested in tests/runtimes/litert/test_export.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.runtimes.litert.values import Form

# Operator -> the version for int8 and for int16; 1 for floats.
_OF_INTEGERS: Mapping[str, tuple[int, int]] = {
    "ADD": (2, 3),
    "AVERAGE_POOL_2D": (2, 3),
    "BATCH_MATMUL": (2, 3),
    "BROADCAST_TO": (2, 3),
    "CONCATENATION": (2, 3),
    "CONV_2D": (3, 4),
    "DEPTHWISE_CONV_2D": (3, 5),
    "DEQUANTIZE": (2, 3),
    "ELU": (1, 1),
    "FULLY_CONNECTED": (4, 7),
    "GATHER": (2, 4),
    "GELU": (2, 2),
    "HARD_SWISH": (1, 1),
    "LEAKY_RELU": (2, 2),
    "LOGISTIC": (2, 3),
    "MAXIMUM": (2, 3),
    "MAX_POOL_2D": (2, 3),
    "MEAN": (2, 3),
    "MINIMUM": (2, 3),
    "MUL": (2, 4),
    "PAD": (2, 3),
    "PADV2": (2, 2),
    "PRELU": (1, 1),
    "QUANTIZE": (2, 2),
    "RELU": (2, 3),
    "RELU6": (2, 3),
    "RELU_N1_TO_1": (1, 1),
    "RESHAPE": (1, 1),
    "RESIZE_BILINEAR": (2, 4),
    "RESIZE_NEAREST_NEIGHBOR": (2, 4),
    "SLICE": (2, 4),
    "SOFTMAX": (2, 3),
    "STRIDED_SLICE": (2, 4),
    "SUB": (3, 5),
    "TANH": (2, 3),
    "TRANSPOSE": (2, 4),
    "TRANSPOSE_CONV": (3, 4),
}
_FLOATS = {"BROADCAST_TO": 2, "TRANSPOSE_CONV": 3}
# Layers that multiply floats by integers: they round what they read at each call.
_HYBRID = {"CONV_2D": 5, "DEPTHWISE_CONV_2D": 6, "FULLY_CONNECTED": 9}
_FOUR_BITS = {"CONV_2D": 7, "FULLY_CONNECTED": 10}
_KEPT_DIMENSIONS, _CHANNELS = 5, 12  # of FULLY_CONNECTED
_DILATED = 2  # of DEPTHWISE_CONV_2D
_HALF_PIXELS = 3
_RESIZES = ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR")


def version_of(kind: str, inputs: Sequence[Form], result: Form, settings: Mapping[str, Any]) -> int:
    """The version of an operator that reads and gives such numbers, with such settings."""
    read = inputs[0].dtype if inputs else result.dtype
    if kind == "TRANSPOSE_CONV":
        read = inputs[2].dtype
    versions = [_of_numbers(kind, read)]
    weight = inputs[1] if len(inputs) > 1 and kind in _HYBRID else None
    if weight is not None and read == "float32" and weight.quantization is not None:
        versions.append(_HYBRID[kind])
    if weight is not None and weight.dtype == "int4":
        versions.append(_FOUR_BITS.get(kind, 1))
    if kind == "FULLY_CONNECTED":
        versions += [_KEPT_DIMENSIONS] * bool(settings.get("keepNumDims"))
        per_channel = weight is not None and weight.quantization is not None
        if per_channel and len(weight.quantization.scales) > 1:  # type: ignore[union-attr]
            versions.append(_CHANNELS)
    if kind == "DEPTHWISE_CONV_2D" and settings.get("dilationHFactor", 1) > 1:
        versions.append(_DILATED)
    if kind in _RESIZES and settings.get("halfPixelCenters"):
        versions.append(_HALF_PIXELS)
    return max(versions)


def _of_numbers(kind: str, read: str) -> int:
    if kind == "QUANTIZE" and read == "float32":
        return 1
    if read in ("int8", "int16"):
        return _OF_INTEGERS.get(kind, (1, 1))[read == "int16"]
    return _FLOATS.get(kind, 1)
