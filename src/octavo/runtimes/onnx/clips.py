"""Clips of what a layer gives, on the integers that it is rounded to.

ONNX Runtime runs a layer on integers where its result is rounded at once. A clip between keeps it
in float; behind both it is a pass over bytes, or nothing where rounding clips alike.

Tested in tests/runtimes/onnx/test_clips.py.
"""

from __future__ import annotations

import math

import torch

from octavo.graph.graph import Node, Ref
from octavo.graph.operators import arguments
from octavo.quantization.targets import COMPUTED, PRODUCT, ROLES, WEIGHTED
from octavo.runtimes.onnx.writer import Writer

_LAYERS = frozenset({WEIGHTED, PRODUCT, COMPUTED})


def behind_rounding(w: Writer, node: Node) -> tuple[Ref, tuple[int, int]] | None:
    """What a node can round in the place of what it rounds, if its integers are clipped after.

    Args:
        w: the writer.
        node: it quantizes.

    Returns:
        A layer's result, and the bounds of its integers; ``None`` where it rounds something else.
    """
    x, scale, zero_point, qmin, qmax, dtype = node.args
    low, high = qmin, qmax
    maker = w.producer(x)
    bounds = bounds_of(maker) if maker is not None else None
    if maker is not None and bounds is not None and w.graph.only_user(x.name) is not None:
        x, maker = maker.args[0], w.producer(maker.args[0])
        low, high = (_rounded(bound, scale, zero_point, qmin, qmax) for bound in bounds)
    # What is moved or read back is rounded already: ONNX Runtime makes one rounding of two.
    if maker is None or ROLES.get(maker.short_op) not in _LAYERS or dtype.itemsize > 1:
        return None
    # Nothing is left to clip: ONNX Runtime sees so itself, but for a layer that is moved behind.
    held = torch.iinfo(dtype)
    if (low, high) == (held.min, held.max) and not maker.short_op.startswith("conv_transpose"):
        return None
    return (x, (low, high)) if w.graph.only_user(x.name) is not None else None


def bounds_of(maker: Node) -> tuple[float, float] | None:
    """What an activation clips to; ``None`` where it does something else."""
    if maker.short_op == "relu":
        return 0.0, math.inf
    if maker.short_op == "hardtanh":
        given = arguments(maker)
        return float(given["min_val"]), float(given["max_val"])
    return None


def _rounded(bound: float, scale: float, zero_point: int, low: int, high: int) -> int:
    """The integer that a bound is rounded to."""
    if math.isinf(bound):
        return high if bound > 0 else low
    return int(min(max(round(bound / scale) + zero_point, low), high))
