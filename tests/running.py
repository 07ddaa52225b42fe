"""Running a graph as it stands, in float, on a call's own arguments."""

from __future__ import annotations

from typing import Any

import torch

from octavo.graph.calls import build_output, flatten_call
from octavo.graph.graph import Graph
from octavo.graph.program import compile_steps, steps_of


def run_graph(graph: Graph, *args: Any, **kwargs: Any) -> Any:
    """What the captured model returns."""
    inputs = [given.name for given in graph.inputs]
    run = compile_steps(inputs, steps_of(graph), graph.output_names(), graph.constants)
    with torch.no_grad():
        return build_output(graph, run(*flatten_call(graph, args, kwargs)))
