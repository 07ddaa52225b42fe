"""The ``reference`` runtime: the QDQ graph as it stands, in float, on any device.

It is the oracle: slow, and what every other runtime has to agree with.

Tested in tests/runtimes/test_contract.py.
"""

from __future__ import annotations

import torch

from octavo.graph.graph import Graph
from octavo.graph.program import run_of
from octavo.runtimes.lowered import Lowered
from octavo.runtimes.options import Options
from octavo.runtimes.runtime import Runtime


def lower(graph: Graph, device: torch.device, options: Options) -> Lowered:
    """Run every node as it is written."""
    return Lowered(run_of(graph, device), {}, {})


RUNTIME = Runtime(lower, cpu_only=False, candidate=False)
