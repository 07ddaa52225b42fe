"""The ``litert`` runtime: a quantized graph as a LiteRT (TFLite) model, one converter an operator.

`export` writes a file's content, `converters` says which converter writes which operator; they lie
in the other files, one theme each. Only `flatbuffer` knows the file's schema; `interpreter` runs
it, by one of the sets of `kernels`.

Tested in tests/runtimes/litert/test_runtime.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from octavo.graph.graph import Graph
from octavo.runtimes.litert.package import package
from octavo.runtimes.lowered import Lowered
from octavo.runtimes.options import Options
from octavo.runtimes.runtime import Runtime


def lower(
    graph: Graph, device: torch.device, options: Options, kernels: str = "xnnpack"
) -> Lowered:
    """Write and load a QDQ graph.

    Raises:
        RuntimeUnavailable: LiteRT cannot load it.
        ExportError: an operator has no form in LiteRT.
        MissingExtra: LiteRT is not installed.
    """
    package()
    from octavo.runtimes.litert.runtime import lowered

    return lowered(graph, options, kernels)


_BY_XNNPACK = Runtime(
    lower,
    options=("threads", "batch"),
    bfloat16=False,
    islands=False,
    candidate=False,
    package=package,
    targets=("edge",),
)
RUNTIME = replace(
    _BY_XNNPACK,
    kernels={
        name: replace(_BY_XNNPACK, lower=partial(lower, kernels=name))
        for name in ("optimized", "reference")
    },
)
