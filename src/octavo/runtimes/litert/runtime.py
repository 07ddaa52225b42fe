"""The ``litert`` runtime: the graph as a LiteRT model, run by its interpreter on the CPU.

A file has one size; for each other one it is written anew.

Tested in tests/runtimes/litert/test_runtime.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Graph
from octavo.runtimes.compiled_kernels import account
from octavo.runtimes.foreign import check_batch
from octavo.runtimes.litert.export import Written, to_tflite
from octavo.runtimes.litert.interpreter import Program
from octavo.runtimes.litert.kernels import KERNELS, oracle_of
from octavo.runtimes.litert.signed import unsigned_results
from octavo.runtimes.lowered import Lowered
from octavo.runtimes.options import Options
from octavo.runtimes.sized_programs import SizedPrograms

_MOST_PROGRAMS = 8
Shapes = tuple[tuple[int, ...], ...]


def lowered(graph: Graph, options: Options, kernels: str = "xnnpack") -> Lowered:
    """Write and load a QDQ graph.

    Args:
        graph: in canonical QDQ form.
        options: how it is run.
        kernels: which of LiteRT's own run it, of `octavo.runtimes.litert.kernels.KERNELS`.

    Raises:
        RuntimeUnavailable: LiteRT cannot load it.
        ExportError: an operator has no form in LiteRT.
    """
    programs = Programs(graph, options, kernels)
    written = programs.of(tuple(tuple(entry.sizes) for entry in graph.inputs)).written
    integer, otherwise = executed(written)
    known, fallbacks = account(graph, integer, otherwise, "litert")
    oracle = programs.oracle if KERNELS[kernels].differ(written.made) else None
    return Lowered(programs.run, known, fallbacks, compiled_for=programs.sizes_of, oracle=oracle)


def executed(written: Written) -> tuple[dict[str, str], dict[str, str]]:
    """Layer -> its operators: of those on integers, and the others."""
    integer: dict[str, str] = {}
    otherwise: dict[str, str] = {}
    for name, operators in written.kernels.items():
        floats = [operator for operator in operators if operator.endswith("float32")]
        kinds = integer if len(floats) == 0 else otherwise
        kinds[name] = "litert " + " ".join(operator.split()[0] for operator in operators)
    return integer, otherwise


class Programs:
    """A model for any sizes: written once for each that it met last.

    Args:
        graph: the model.
        options: how it is run.
        kernels: LiteRT's own that run it, of `KERNELS`.
    """

    def __init__(self, graph: Graph, options: Options, kernels: str = "xnnpack") -> None:
        self.graph, self.batch, self.kernels = graph, options.batch, kernels
        self.unsigned = unsigned_results(graph)
        threads = options.threads or torch.get_num_threads()
        self.programs = SizedPrograms[Shapes, Program](
            lambda shapes: Program(to_tflite(graph, shapes), kernels, threads), _MOST_PROGRAMS
        )

    def of(self, shapes: Shapes) -> Program:
        """The program for inputs of these shapes."""
        return self.programs.of(shapes)

    def sizes_of(self, tensors: Sequence[Tensor]) -> tuple[int, ...]:
        """The sizes of inputs that they need a program of their own for."""
        return tuple(size for tensor in tensors for size in tensor.shape)

    def run(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What the model gives.

        Raises:
            InputError: the batch is not the one that it was lowered for.
            RuntimeUnavailable: LiteRT cannot run it.
        """
        check_batch(self.graph, tensors, self.batch)
        results = self.of(_shapes(tensors)).run(tensors)
        names = self.graph.output_names()
        return tuple(
            _as_unsigned(result) if name in self.unsigned else result
            for name, result in zip(names, results, strict=True)
        )

    def oracle(self, *tensors: Tensor) -> tuple[Any, ...]:
        """What its kernels should give, which depends on how the file is made.

        Raises:
            ExportError: an operator has no form in LiteRT.
        """
        made = self.of(_shapes(tensors)).written.made
        return oracle_of(self.graph, made, KERNELS[self.kernels])(*tensors)


def _shapes(tensors: Sequence[Tensor]) -> Shapes:
    return tuple(tuple(tensor.shape) for tensor in tensors)


def _as_unsigned(integers: Tensor) -> Tensor:
    return (integers.to(torch.int16) + 128).to(torch.uint8)
