"""Rounding by the range that a value itself has, at each call.

Linear layers do that themselves (`layers`); for others it is written out, in float.

Tested in tests/runtimes/litert/test_modes.py.
"""

from __future__ import annotations

import numpy as np

from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.runtimes.litert.values import FLOAT, Value
from octavo.runtimes.litert.writer import Writer

_SMALLEST = float(np.finfo(np.float32).tiny) ** 0.5
_OPTIONS = {"ADD": "AddOptions", "MUL": "MulOptions", "SUB": "SubOptions", "DIV": "DivOptions"}


def rounded(w: Writer, node: Node) -> Value:
    """As `octavo.numerics.octavo_operators.fake_quantize_dynamic` does it."""
    given = arguments(node)
    qmin, qmax = int(given["qmin"]), int(given["qmax"])
    x = w.read_floats(given["x"], last=False)
    axes = [len(x.shape) - 1] if given["per_token"] else list(range(len(x.shape)))
    ends = [_extreme(w, kind, x, axes) for kind in ("REDUCE_MIN", "REDUCE_MAX")]
    low, high = _two(w, "MINIMUM", ends[0], 0.0), _two(w, "MAXIMUM", ends[1], 0.0)
    if given["symmetric"]:
        reach, steps = _two(w, "MAXIMUM", _two(w, "MUL", low, -1.0), high), min(qmax, -qmin)
    else:
        reach, steps = _two(w, "SUB", high, low), qmax - qmin
    scale = _two(w, "MAXIMUM", _two(w, "DIV", reach, float(steps)), _SMALLEST)
    integers = _round(w, _two(w, "DIV", x, scale))
    if given["symmetric"]:
        return _two(w, "MUL", _cut(w, integers, qmin, qmax), scale)
    start = _round(w, _two(w, "DIV", low, scale))
    zero = _cut(w, _two(w, "ADD", _two(w, "MUL", start, -1.0), float(qmin)), qmin, qmax)
    stored = _cut(w, _two(w, "ADD", integers, zero), qmin, qmax)
    return _two(w, "MUL", _two(w, "SUB", stored, zero), scale)


def _extreme(w: Writer, kind: str, x: Value, axes: list[int]) -> Value:
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    return w.op(kind, [x, w.ints(axes)], shape, FLOAT, "ReducerOptions", keepDims=True)


def _two(w: Writer, kind: str, a: Value, b: Value | float) -> Value:
    other = b if isinstance(b, Value) else w.constant(np.float32(b), FLOAT, "number")
    shape = np.broadcast_shapes(a.shape, other.shape)
    return w.op(kind, [a, other], shape, FLOAT, _OPTIONS.get(kind, "MaximumMinimumOptions"))


def _cut(w: Writer, value: Value, low: int, high: int) -> Value:
    return _two(w, "MINIMUM", _two(w, "MAXIMUM", value, float(low)), float(high))


def _round(w: Writer, value: Value) -> Value:
    return w.op("ROUND", [value], value.shape, FLOAT)
