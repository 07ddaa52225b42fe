"""A runtime in a file of its own, outside of src: the graph as it stands, with a batch to note."""

from __future__ import annotations

import torch

from octavo.graph.graph import Graph
from octavo.graph.program import run_of
from octavo.runtimes import RUNTIMES, Lowered, Options, Runtime


def lower(graph: Graph, device: torch.device, options: Options) -> Lowered:
    layers = [node.name for node in graph.nodes if node.short_op == "linear"]
    note = "" if options.batch is None else f"for batches of {options.batch}"
    return Lowered(run_of(graph, device), dict.fromkeys(layers, "toy linear"), {}, note)


RUNTIMES["toy"] = Runtime(lower, options=("batch",), bfloat16=False)
