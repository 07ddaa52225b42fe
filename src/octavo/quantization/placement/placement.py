"""What placing decides, by name of value."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.quantization.qconfig import QSpec
from octavo.quantization.reasons import Reason

# How a node runs that reads integers, be they only its weights.
INTEGERS = frozenset({"int8", "dynamic", "weight_only"})


@dataclass
class Placement:
    """What was decided, by name of value.

    Attributes:
        int8: nodes that run in static int8, fused ones included.
        dynamic: nodes that quantize what they read at each call -> how.
        weight_only: nodes of which only the weights are quantized.
        bfloat16: float layers that compute in it.
        fused_into: inner node -> the node whose value its kernel returns.
        specs: values that are quantized.
        weights: quantized node -> its quantized constants.
        shares: value -> the value whose scale it has.
        reasons: every value -> why.
    """

    int8: set[str] = field(default_factory=set)
    dynamic: dict[str, QSpec] = field(default_factory=dict)
    weight_only: set[str] = field(default_factory=set)
    bfloat16: set[str] = field(default_factory=set)
    fused_into: dict[str, str] = field(default_factory=dict)
    specs: dict[str, QSpec] = field(default_factory=dict)
    weights: dict[str, dict[str, QSpec]] = field(default_factory=dict)
    shares: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, Reason] = field(default_factory=dict)

    def on_integers(self, node: str) -> bool:
        """Whether a node reads integers, be they only its weights."""
        return self.runs(node) in INTEGERS

    def runs(self, node: str) -> str:
        """``"int8"``, ``"dynamic"``, ``"weight_only"``, ``"bfloat16"`` or ``"float"``."""
        if node in self.int8:
            return "int8"
        if node in self.dynamic:
            return "dynamic"
        if node in self.bfloat16:
            return "bfloat16"
        return "weight_only" if node in self.weight_only else "float"
