"""What placing decides, by name of value."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.qconfig import QSpec


@dataclass
class Placement:
    """What was decided, by name of value.

    Attributes:
        int8: nodes that run in static int8, fused ones included.
        dynamic: nodes that quantize what they read at each call -> how.
        weight_only: nodes of which only the weights are quantized.
        fused_into: inner node -> the node whose value its kernel returns.
        specs: values that are quantized.
        weights: quantized node -> its quantized constants.
        shares: value -> the value whose scale it has.
        reasons: every value -> why.
    """

    int8: set[str] = field(default_factory=set)
    dynamic: dict[str, QSpec] = field(default_factory=dict)
    weight_only: set[str] = field(default_factory=set)
    fused_into: dict[str, str] = field(default_factory=dict)
    specs: dict[str, QSpec] = field(default_factory=dict)
    weights: dict[str, dict[str, QSpec]] = field(default_factory=dict)
    shares: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def runs(self, node: str) -> str:
        """``"int8"``, ``"dynamic"``, ``"weight-only"`` or ``"float"``."""
        if node in self.int8:
            return "int8"
        if node in self.dynamic:
            return "dynamic"
        return "weight-only" if node in self.weight_only else "float"
