"""What a QDQ graph says: the operators that round, and who reads what they make.

A quantized activation is ``x -> QUANTIZE -> DEQUANTIZE``, one that is rounded by its own range at
each call ``x -> DYNAMIC``. A quantized weight is a constant of integers behind one of
`WEIGHT_READERS`, those of four bits behind `UNPACK` too. Whoever reads or writes such a graph takes
the names from here.
"""

from __future__ import annotations

from octavo.graph.graph import Node

QUANTIZE, DEQUANTIZE = "octavo.quantize.default", "octavo.dequantize.default"
DEQUANTIZE_CHANNELS = "octavo.dequantize_channels.default"
DEQUANTIZE_GROUPS = "octavo.dequantize_groups.default"
DYNAMIC = "octavo.fake_quantize_dynamic.default"
UNPACK = "octavo.unpack_int4.default"
ATTENTION = "octavo.attention.default"

WEIGHT_READERS = frozenset({DEQUANTIZE, DEQUANTIZE_CHANNELS, DEQUANTIZE_GROUPS})
# Operators whose results are floats that stand for integers.
DEQUANTIZED = WEIGHT_READERS | {DYNAMIC}


def is_own(node: Node) -> bool:
    """Whether a node is one of Octavo's operators, and none of the model's own."""
    return node.op.startswith("octavo.")
