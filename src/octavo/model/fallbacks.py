"""Quantized layers that a runtime runs in float.

Tested in tests/model/test_model.py.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

from octavo.errors import OctavoWarning
from octavo.quantization.plan import Plan
from octavo.runtimes import Lowered

# Where these run in float, something can be done about it; the summary names the others as well.
WITH_KERNELS = frozenset({"conv1d", "conv2d", "conv3d", "linear"})


def as_planned(lowered: Lowered, plan: Plan) -> Lowered:
    """Without the fallbacks that are none: float operators behind int8 layers."""
    quantized = {name for name, t in plan.tensors.items() if t.on_integers}
    fallbacks = {name: why for name, why in lowered.fallbacks.items() if name in quantized}
    return replace(lowered, fallbacks=fallbacks)


def warn_of(lowered: Lowered, plan: Plan) -> None:
    """Tell of those that should have a kernel."""
    unexpected = {
        name: why
        for name, why in lowered.fallbacks.items()
        if name in plan.tensors and plan.tensors[name].op in WITH_KERNELS
    }
    if unexpected:
        layers, reasons = list(unexpected), sorted(set(unexpected.values()))
        warnings.warn(
            f"{len(layers)} quantized layers run in float on the {lowered.runtime} runtime "
            f"({', '.join(layers[:3])}{', ...' if len(layers) > 3 else ''}): {'; '.join(reasons)}",
            OctavoWarning,
            stacklevel=4,
        )
