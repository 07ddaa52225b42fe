"""What is called of ExecuTorch, which is imported here alone.

Tested in tests/runtimes/executorch/test_programs.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.export import ExportedProgram

from octavo.errors import optional_import
from octavo.graph.quiet import quiet

# Calls that the program's writer makes into other things than kernels.
_NO_KERNELS = frozenset({"aten::view_copy", "aten::alias_copy"})


def package() -> Any:
    """ExecuTorch, with the operators ``quantized_decomposed`` and their kernels.

    Raises:
        MissingExtra: it is not installed.
    """
    with (
        optional_import("executorch", "executorch", "write and run programs of ExecuTorch"),
        quiet(),
    ):
        import executorch
        import executorch.backends.xnnpack.partition.xnnpack_partitioner
        import executorch.exir
        import executorch.kernels.quantized
        import executorch.runtime
    return executorch


def integer_operators() -> Any:
    """The operators that say what integers mean; ExecuTorch registers them.

    Raises:
        MissingExtra: it is not installed.
    """
    package()
    return torch.ops.quantized_decomposed


def partitioned(program: ExportedProgram) -> tuple[Any, dict[str, str]]:
    """A program, all of it that XNNPACK takes as its delegates; and of what it does not, why.

    Raises:
        Exception: ExecuTorch cannot lower it; its errors share no base.
    """
    executorch = package()
    partitioner = executorch.backends.xnnpack.partition.xnnpack_partitioner.XnnpackPartitioner()
    # Its first call in a process draws random numbers, which are the user's.
    with quiet(), torch.random.fork_rng(devices=[]), _refusals() as why:
        manager = executorch.exir.to_edge_transform_and_lower(program, partitioner=[partitioner])
    return manager, why


@contextmanager
def _refusals() -> Iterator[dict[str, str]]:
    """Why XNNPACK's partitioner refuses nodes, by their names, as it logs it meanwhile."""
    why: dict[str, str] = {}

    def note(record: logging.LogRecord) -> bool:
        said: Any = record.msg
        if getattr(said, "node", None) is not None:
            why.setdefault(said.node.name, str(said.reason))
        return record.levelno > logging.DEBUG

    loggers = [
        logging.getLogger(f"executorch.backends.xnnpack.partition.config.{name}")
        for name in ("gemm_configs", "generic_node_configs", "node_configs", "xnnpack_config")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addFilter(note)
        logger.setLevel(logging.DEBUG)
    try:
        yield why
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeFilter(note)
            logger.setLevel(level)


def operators_of(manager: Any) -> set[str]:
    """The operators outside of delegates."""
    calls = (node for node in manager.exported_program().graph.nodes if node.op == "call_function")
    return {node.target._schema.name for node in calls if hasattr(node.target, "_schema")}


def missing_kernels(manager: Any) -> set[str]:
    """The operators outside of delegates that the runtime at hand has no kernel for."""
    known = package().runtime.Runtime.get().operator_registry.operator_names
    return operators_of(manager) - {name.split(".")[0] for name in known} - _NO_KERNELS


def method_of(data: bytes) -> Callable[[Sequence[torch.Tensor]], Sequence[Any]]:
    """What runs a program.

    Raises:
        RuntimeError: ExecuTorch cannot load it.
    """
    program = package().runtime.Runtime.get().load_program(data)
    # A method reads the memory of its program, and does not keep it; a program lets go of its bytes
    # before it ends itself. These end from the last to the first.
    kept = (data, program, program.load_method("forward"))
    return lambda tensors: kept[-1].execute(tensors)
