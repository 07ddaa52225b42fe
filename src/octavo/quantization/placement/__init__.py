"""Where integers stand in a graph: which nodes run on them, what is fused, who shares a scale.

The rules, which the runtimes rely on:

- A *weighted* layer is quantized wherever it can be. How, its qconfig says: with a static range it
  runs in int8; with a dynamic one it quantizes what it reads at each call and returns float;
  without any only its weights are integers. A *table* (embedding) has integers in every mode.
- A *product* of activations runs in int8 wherever it can be, as a static layer does.
- A *computed* or *shared* operator runs in int8 where it stands between static int8 layers:
  something int8 makes an input of it, something int8 reads its result, and nothing float does. So
  there is no float island between two int8 layers, nothing is quantized for nothing, and a sum that
  a float operator needs (the residual stream of a transformer) keeps its precision.
- A kernel's inner results are not quantized: convolution, addition and activation in one kernel
  round once.
- A layer that a rule wants in bfloat16 is a float layer to all others.
- What nothing int8 reads is not quantized: the last layer returns float. Where a target's kernels
  return integers alone (`Target.integer_results`), what they make is quantized whoever reads it,
  and the caller reads as something int8 does.

All of it is tested in tests/quantization/test_plan.py, tests/quantization/test_reasons.py,
tests/quantization/test_bfloat16.py and tests/test_tied_weights.py.
"""

from __future__ import annotations

from octavo.quantization.placement.placement import INTEGERS, Placement
from octavo.quantization.placement.rules import place

__all__ = ["INTEGERS", "Placement", "place"]
