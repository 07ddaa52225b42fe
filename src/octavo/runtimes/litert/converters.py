"""Which converter writes which operator.

Tested in tests/runtimes/litert/test_export.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.graph.qdq import DEQUANTIZE, DEQUANTIZE_WEIGHT, UNPACK
from octavo.runtimes.litert import affine, elementwise, layers, pooling, reductions, shapes
from octavo.runtimes.litert.rounding import rounding_at
from octavo.runtimes.litert.values import Value
from octavo.runtimes.litert.writer import Converter, Writer


def _quantize(w: Writer, node: Node) -> Value:
    """Floats to integers, where no operator gives integers itself."""
    w.rounding = rounding_at(node)
    return w.requantized(w.read_floats(node.args[0]), w.rounding.form)


def _dynamic(w: Writer, node: Node) -> Value:
    """Floats that the layer behind rounds itself."""
    return w.read_floats(arguments(node)["x"])


CONVERTERS: Mapping[str, Mapping[str, Converter]] = {
    "aten": {
        **elementwise.CONVERTERS,
        **affine.CONVERTERS,
        **shapes.CONVERTERS,
        **reductions.CONVERTERS,
        **layers.CONVERTERS,
        **pooling.CONVERTERS,
    },
    "octavo": {"quantize": _quantize, "fake_quantize_dynamic": _dynamic},
    "python": {"getitem": shapes.GETITEM},
}

# Read by who reads their results: a weight's integers, a value's, and parts of a split.
UNWRITTEN = frozenset({DEQUANTIZE_WEIGHT, UNPACK, DEQUANTIZE})


def converter_of(node: Node) -> Converter | None:
    """The function that writes a node; ``None`` where there is none."""
    return CONVERTERS.get(node.op.split(".")[0], {}).get(node.short_op)


def is_unwritten(node: Node) -> bool:
    """Whether a node has no operator of its own."""
    return node.op in UNWRITTEN or node.short_op in shapes.LAZY
