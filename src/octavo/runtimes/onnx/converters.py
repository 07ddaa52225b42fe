"""Which converter writes which operator.

Tested in tests/runtimes/onnx/test_zoo.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from octavo.graph.qdq import DEQUANTIZE_WEIGHT, DYNAMIC, UNPACK
from octavo.runtimes.onnx import (
    activations,
    attention,
    creation,
    elementwise,
    indexing,
    layers,
    linear,
    pooling,
    quantization,
    recurrent,
    reductions,
    shapes,
    sizes,
    tables,
    transposed,
)
from octavo.runtimes.onnx.writer import Converter

CONVERTERS: Mapping[str, Mapping[str, Converter]] = {
    "aten": {
        **elementwise.CONVERTERS,
        **activations.CONVERTERS,
        **shapes.CONVERTERS,
        **indexing.CONVERTERS,
        **reductions.CONVERTERS,
        **creation.CONVERTERS,
        **sizes.CONVERTERS,
        **layers.CONVERTERS,
        **linear.CONVERTERS,
        **transposed.CONVERTERS,
        **tables.CONVERTERS,
        **pooling.CONVERTERS,
        **recurrent.CONVERTERS,
        "scaled_dot_product_attention": attention.CONVERTERS["scaled_dot_product_attention"],
    },
    "octavo": {**quantization.CONVERTERS, "attention": attention.CONVERTERS["attention"]},
    "python": {**sizes.PYTHON, "getitem": indexing.getitem},
}

# Written where they are read: by the layer that reads them, in the form that it wants.
LAZY = frozenset({DEQUANTIZE_WEIGHT, UNPACK, DYNAMIC})
