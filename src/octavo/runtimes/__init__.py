"""Runtimes: each lowers the canonical QDQ graph to something that runs, in a file of its own.

A runtime's module is imported when it is asked for, and only it imports its package.

Tested in tests/runtimes/test_agreement.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.graph.graph import Graph
from octavo.runtimes.fastest import lower_to_fastest
from octavo.runtimes.lowered import Lowered
from octavo.runtimes.lowering import lower_proved
from octavo.runtimes.options import Options
from octavo.runtimes.runtime import (
    ORACLE,
    RUNTIMES,
    OnnxReader,
    Runtime,
    has_own_threads,
    is_for,
    runtime_of,
)

FASTEST = "fastest"

__all__ = [
    "FASTEST",
    "ORACLE",
    "RUNTIMES",
    "Lowered",
    "OnnxReader",
    "Options",
    "Runtime",
    "default_runtime",
    "has_own_threads",
    "is_for",
    "lower",
]


def default_runtime(device: torch.device) -> str:
    """What runs a model there unless another runtime is asked for."""
    return "torch" if device.type == "cpu" else ORACLE


def lower(
    graph: Graph,
    runtime: str,
    device: torch.device,
    options: Options | None = None,
    samples: Sequence[Sequence[Tensor]] = (),
) -> Lowered:
    """Make a quantized graph ready for a runtime.

    Args:
        graph: in canonical QDQ form.
        runtime: one of `RUNTIMES`, or ``"fastest"``, the quickest of those that agree.
        device: where the graph's tensors are.
        options: how it shall run.
        samples: batches of inputs, each a tensor for each input of the graph, on which the runtime
            has to agree with the oracle; without any nothing is compared.

    Raises:
        RuntimeUnavailable: there is no such runtime, or it cannot run here.
        RuntimeDisagrees: it computes something else than the oracle.
        MissingExtra: the runtime's package is not installed.
        ExportError: the runtime cannot express an operator of the graph.
    """
    options = options or Options()
    if runtime == FASTEST:
        return lower_to_fastest(graph, device, options, samples)
    runtime_of(runtime, FASTEST)
    return lower_proved(graph, runtime, device, options, samples)
