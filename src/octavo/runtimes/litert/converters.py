"""Which converter writes which operator.

Tested in tests/runtimes/litert/test_export.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from octavo.graph.graph import Node
from octavo.graph.qdq import DEQUANTIZE, DEQUANTIZE_WEIGHT, DYNAMIC, UNPACK
from octavo.runtimes.litert import (
    affine,
    attention,
    dynamic,
    elementwise,
    layers,
    pooling,
    recurrent,
    reductions,
    shapes,
    tables,
)
from octavo.runtimes.litert.rounding import rounding_at
from octavo.runtimes.litert.values import Value
from octavo.runtimes.litert.writer import Converter, Writer


def _quantize(w: Writer, node: Node) -> Value:
    """Floats to integers, where no operator gives integers itself."""
    w.rounding = rounding_at(node)
    return w.requantized(w.read_floats(node.args[0]), w.rounding.form)


CONVERTERS: Mapping[str, Mapping[str, Converter]] = {
    "aten": {
        **elementwise.CONVERTERS,
        **affine.CONVERTERS,
        **shapes.CONVERTERS,
        **reductions.CONVERTERS,
        **layers.CONVERTERS,
        **pooling.CONVERTERS,
        **attention.CONVERTERS,
        **recurrent.CONVERTERS,
        **tables.CONVERTERS,
    },
    "octavo": {
        "quantize": _quantize,
        "fake_quantize_dynamic": dynamic.rounded,
        "attention": attention.ATTENTION,
    },
    "python": {"getitem": shapes.GETITEM},
}

# Left to who reads their results: a weight's integers, a value's, what a layer rounds itself.
UNWRITTEN = frozenset({DEQUANTIZE_WEIGHT, UNPACK, DEQUANTIZE, DYNAMIC})


def converter_of(node: Node) -> Converter | None:
    """The function that writes a node; ``None`` where there is none."""
    return CONVERTERS.get(node.op.split(".")[0], {}).get(node.short_op)


def is_unwritten(node: Node) -> bool:
    """Whether a node has no operator of its own."""
    return node.op in UNWRITTEN or node.short_op in shapes.LAZY
