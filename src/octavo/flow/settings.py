"""How a model is to be quantized, whichever way it goes.

Tested in tests/flow/test_quantize.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from octavo.arguments import Kind
from octavo.errors import InputError
from octavo.flow.effort.islands import Planner, planner_of
from octavo.graph.graph import Graph
from octavo.graph.open_sizes import OpenSizes
from octavo.graph.pixels import Pixels
from octavo.quantization.plan import Plan, plan
from octavo.quantization.qconfig import QConfig, QConfigMapping, mode_of
from octavo.quantization.weights import WeightMethod

Only = Sequence[str] | Callable[[str, nn.Module], bool]
"""Paths of modules, or a rule that picks some by path and module."""

SCOPES = ("auto", "model", "regions", "modules")
SCOPE = Kind(lambda scope: scope in SCOPES, f"give one of {', '.join(map(repr, SCOPES))}")


def _picks(only: Any) -> bool:
    names = isinstance(only, list | tuple) and all(isinstance(path, str) for path in only)
    return callable(only) or (names and bool(only))


ONLY = Kind(_picks, 'give paths of modules, ["backbone"], or a function of a path and a module')


@dataclass(frozen=True)
class Settings:
    """What `octavo.quantize` was asked for, see its arguments."""

    target: str = "x86"
    mode: str = "dynamic"
    precision: str = "float32"
    mapping: QConfigMapping | None = None
    weights: Sequence[WeightMethod] = ()
    only: Only | None = None
    distributed: bool = False
    progress: bool = True
    open_sizes: OpenSizes | None = None
    checkpoint: str | os.PathLike[str] | None = None
    effort: str = "fast"

    def plan(self, graph: Graph, inside: str = "") -> Plan:
        """The plan of a graph, be it that of the module of this path.

        Raises:
            PlanError: as `octavo.plan`.
        """
        mapping = (
            self.mapping if not inside or self.mapping is None else self.mapping.within(inside)
        )
        return plan(graph, mapping, self.target, self.mode, self.precision)

    def planner(self, graph: Graph) -> Planner:
        """How the plan of a graph leaves more of its nodes in float."""
        return planner_of(graph, self.mapping, self.target, self.mode, self.precision)


NEEDS_NO_GRAPH = ("dynamic", "weight_only")  # modes


def default_mode(scope: str, calibration: object, qconfig: QConfig | QConfigMapping | None) -> str:
    """The mode where none is asked for."""
    has_scales = calibration is not None and scope != "modules"
    return "static" if has_scales else mode_of(qconfig, "dynamic")


def scope_of(
    scope: str,
    only: Only | None,
    run: object = None,
    pixels: Pixels | None = None,
    open_sizes: OpenSizes | None = None,
) -> str:
    """The scope that the other arguments leave.

    Raises:
        InputError: they contradict each other.
    """
    needed = {"only": only is not None, "run": run is not None}
    given = [f"{name}=" for name, is_given in needed.items() if is_given]
    if scope == "model" and given:
        raise InputError(f'{given[0]} is for regions, and scope is "model": leave one of them out')
    if pixels is not None and (given or scope in ("regions", "modules")):
        raise InputError(
            "input_scale, input_mean and input_std are for a model that is one graph: leave them "
            "out, and give the others what the float model takes"
        )
    if open_sizes is not None and (given or scope in ("regions", "modules")):
        raise InputError(
            "open_sizes is about the inputs of a model that is one graph: leave it out; regions "
            "and modules take all sizes that they can"
        )
    if scope != "auto":
        return scope
    one_graph = pixels is not None or open_sizes is not None
    return "regions" if given else "model" if one_graph else "auto"
