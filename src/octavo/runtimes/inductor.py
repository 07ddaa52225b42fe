"""The ``inductor`` runtime: the ``torch`` runtime's kernels, what stands between them compiled.

Rounding, layer norms, activations and softmax become loops of their own, so that a value is read
and written once between two integer kernels. It needs a C++ compiler, and compiling takes a while;
PyTorch keeps what it compiled on disk and finds it again.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.errors import RuntimeUnavailable
from octavo.graph.graph import Graph
from octavo.graph.quiet import quiet
from octavo.runtimes.examples import random_inputs
from octavo.runtimes.lowered import Lowered
from octavo.runtimes.options import Options
from octavo.runtimes.runtime import Runtime
from octavo.runtimes.torch.int8 import lower_to

_COMPILERS = ("g++", "clang++", "c++")


def lower(graph: Graph, device: torch.device, options: Options) -> Lowered:
    """Lower a QDQ graph and compile it for the sizes of its example, or for ``options.batch``.

    Another batch size is compiled when it first comes, from then on for any size.

    Raises:
        RuntimeUnavailable: there is no compiler, or it does not compile.
    """
    if not any(shutil.which(name) for name in _COMPILERS):
        raise RuntimeUnavailable(
            f"the inductor runtime needs a C++ compiler ({', '.join(_COMPILERS)}) on the PATH"
        )
    lowered = lower_to(graph, "compiler", joining=options.joined is not False)
    run = _compiled(lowered.run)
    try:
        with quiet(), torch.inference_mode():
            run(*random_inputs(graph, options.batch))
    except Exception as error:  # the compiler's errors share no base
        raise RuntimeUnavailable(
            f'torch.compile cannot compile the model: {_first_line(error)}; use .lower("torch")'
        ) from error
    return replace(lowered, run=run)


def _first_line(error: Exception) -> str:
    """What an error says, or where it was raised if it says nothing."""
    said = next(iter(str(error).splitlines()), "").strip()
    if said and not said.endswith(":"):
        return said
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{said or type(error).__name__} {place.line} ({Path(place.filename).name})"


def _compiled(run: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    compiled = torch.compile(run)

    def call(*tensors: Tensor) -> tuple[Any, ...]:
        results: tuple[Any, ...] = compiled(*tensors)
        return results

    return call


RUNTIME = Runtime(lower, options=("batch", "joined"), candidate=False)
