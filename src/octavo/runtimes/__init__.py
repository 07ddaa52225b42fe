"""Runtimes: each lowers the canonical QDQ graph to something that runs, in a file of its own.

A runtime's module is imported when it is asked for, and only it imports its package.
"""

from __future__ import annotations

from importlib import import_module

import torch

from octavo.errors import RuntimeUnavailable
from octavo.graph import Graph
from octavo.runtimes.lowered import Lowered, Options

RUNTIMES = {
    "reference": "octavo.runtimes.reference",
    "torch": "octavo.runtimes.torch_int8",
    "inductor": "octavo.runtimes.inductor",
    "onnxruntime": "octavo.runtimes.onnxruntime",
    "openvino": "octavo.runtimes.openvino",
    "fastest": "octavo.runtimes.fastest",
}

# These have threads of their own.
FOREIGN = frozenset({"onnxruntime", "openvino"})

__all__ = ["FOREIGN", "RUNTIMES", "Lowered", "Options", "default_runtime", "lower"]


def default_runtime(device: torch.device) -> str:
    """What runs a model there unless another runtime is asked for."""
    return "torch" if device.type == "cpu" else "reference"


def lower(
    graph: Graph, runtime: str, device: torch.device, options: Options | None = None
) -> Lowered:
    """Make a quantized graph ready for a runtime.

    Raises:
        RuntimeUnavailable: there is no such runtime, or it cannot run here.
        MissingExtra: the runtime's package is not installed.
        ExportError: the runtime cannot express an operator of the graph.
    """
    if runtime not in RUNTIMES:
        raise RuntimeUnavailable(f"unknown runtime {runtime!r}; one of {sorted(RUNTIMES)}")
    lowered: Lowered = import_module(RUNTIMES[runtime]).lower(graph, device, options or Options())
    return lowered
