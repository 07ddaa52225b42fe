"""How a model is to be quantized, whichever way it goes.

Tested in tests/flow/test_quantize.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from octavo.graph.graph import Graph
from octavo.graph.open_sizes import OpenSizes
from octavo.quantization.plan import Plan, plan
from octavo.quantization.qconfig import QConfigMapping
from octavo.quantization.weights import WeightMethod

Only = Sequence[str] | Callable[[str, nn.Module], bool]
"""Paths of modules, or a rule that picks some by path and module."""


@dataclass(frozen=True)
class Settings:
    """What `octavo.quantize` was asked for, see its arguments."""

    target: str
    mode: str
    precision: str
    mapping: QConfigMapping | None
    weights: Sequence[WeightMethod]
    only: Only | None = None
    distributed: bool = False
    progress: bool = True
    open_sizes: OpenSizes | None = None

    def plan(self, graph: Graph, inside: str = "") -> Plan:
        """The plan of a graph, be it that of the module of this path.

        Raises:
            PlanError: as `octavo.plan`.
        """
        mapping = (
            self.mapping if not inside or self.mapping is None else self.mapping.within(inside)
        )
        return plan(graph, mapping, self.target, self.mode, self.precision)
