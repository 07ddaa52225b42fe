"""A quantized graph run by ExecuTorch, in a program for each size of its inputs.

XNNPACK takes no shapes with open sizes, so that a program is made for each that comes, and the last
ones are kept.

Tested in tests/runtimes/executorch/test_programs.py.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.errors import RuntimeUnavailable, first_line
from octavo.graph.graph import Graph
from octavo.runtimes.compiled_kernels import account
from octavo.runtimes.examples import random_inputs, takes_batch
from octavo.runtimes.executorch.export import Program, program_of
from octavo.runtimes.executorch.package import method_of
from octavo.runtimes.foreign import check_batch
from octavo.runtimes.lowered import Lowered
from octavo.runtimes.options import Options
from octavo.runtimes.sized_programs import SizedPrograms

_MOST_PROGRAMS = 8
_NAME = "executorch"
_SAMPLES = 2
# XNNPACK approximates functions, and sums what is float in an order of its own.
FLOAT_ERROR = 2.0**-15

Shapes = tuple[tuple[int, ...], ...]


def lower(graph: Graph, device: torch.device, options: Options) -> Lowered:
    """Make a program of a QDQ graph, for the sizes of its example or ``options.batch``.

    Raises:
        ExportError: ExecuTorch has no form or no kernel for an operator.
        MissingExtra: it is not installed.
        RuntimeUnavailable: it cannot load the program.
    """
    programs = SizedPrograms[Shapes, LoadedProgram](
        lambda shapes: _made(graph, shapes), _MOST_PROGRAMS
    )
    first = programs.of(_shapes(random_inputs(graph, options.batch or _usual(graph)))).program

    def run(*tensors: Tensor) -> tuple[Any, ...]:
        check_batch(graph, tensors, options.batch)
        return programs.of(_shapes(tensors)).run(tensors)

    kernels, fallbacks = account(graph, first.integer, first.floating, _NAME)
    why = {
        name: f"{why}: {first.outside[name]}"
        for name, why in fallbacks.items()
        if name in first.outside
    }
    return Lowered(
        run,
        kernels,
        {**fallbacks, **why},
        note=outside_in_words(graph, first.outside),
        float_error=FLOAT_ERROR,
        compiled_for=lambda tensors: tuple(size for shape in _shapes(tensors) for size in shape),
    )


def _usual(graph: Graph) -> int | None:
    """The batch that a program is made for at once: that of the samples which prove it."""
    is_open = all(entry.batch_axis is not None for entry in graph.inputs)
    return _SAMPLES if is_open and takes_batch(graph, _SAMPLES) else None


def outside_in_words(graph: Graph, outside: Mapping[str, str]) -> str:
    """What runs outside of XNNPACK and why, in a sentence; ``""`` where all is in it."""
    known = graph.by_name
    found = Counter((known[name].short_op, why) for name, why in outside.items() if name in known)
    if not found:
        return ""
    parts = [f"{count} {op} ({why})" for (op, why), count in found.items()]
    return f"outside of XNNPACK, by ExecuTorch's portable kernels: {'; '.join(parts)}"


class LoadedProgram:
    """A program that is loaded; calls take turns.

    Args:
        program: what to load.

    Raises:
        RuntimeUnavailable: ExecuTorch cannot load it.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        try:
            self.execute = method_of(program.data)
        except RuntimeError as error:
            raise RuntimeUnavailable(
                f"ExecuTorch cannot load the program: {first_line(error)}"
            ) from error
        self.calling = threading.Lock()

    def run(self, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        """What the model gives.

        Raises:
            RuntimeUnavailable: ExecuTorch cannot run it.
        """
        try:
            with self.calling:
                return tuple(self.execute([tensor.detach().contiguous() for tensor in tensors]))
        except RuntimeError as error:
            words = f"ExecuTorch cannot run these inputs: {first_line(error)}"
            raise RuntimeUnavailable(words) from error


def _made(graph: Graph, shapes: Shapes) -> LoadedProgram:
    tensors = [
        torch.zeros(shape, dtype=getattr(torch, entry.meta.dtype))
        for entry, shape in zip(graph.inputs, shapes, strict=True)
    ]
    return LoadedProgram(program_of(graph, tensors))


def _shapes(tensors: Sequence[Tensor]) -> Shapes:
    return tuple(tuple(tensor.shape) for tensor in tensors)
