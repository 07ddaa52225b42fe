"""Runtimes: each lowers the canonical QDQ graph to something that runs, in a file of its own.

A runtime's module is imported when it is asked for, and only it imports its package.
"""

from __future__ import annotations

from importlib import import_module

import torch

from octavo.errors import RuntimeUnavailable
from octavo.graph import Graph
from octavo.runtimes.lowered import Lowered

RUNTIMES = {"reference": "octavo.runtimes.reference", "torch": "octavo.runtimes.torch_int8"}

__all__ = ["RUNTIMES", "Lowered", "lower"]


def lower(graph: Graph, runtime: str, device: torch.device) -> Lowered:
    """Make a quantized graph ready for a runtime.

    Raises:
        RuntimeUnavailable: there is no such runtime, or it cannot run here.
    """
    if runtime not in RUNTIMES:
        raise RuntimeUnavailable(f"unknown runtime {runtime!r}; one of {sorted(RUNTIMES)}")
    lowered: Lowered = import_module(RUNTIMES[runtime]).lower(graph, device)
    return lowered
