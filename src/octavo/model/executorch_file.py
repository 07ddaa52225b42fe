"""`export_executorch`: a quantized model as a ``.pte`` file for phones, which is run before it is
written.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from octavo.arguments import INTEGER, PATH, expect
from octavo.display import Result, Table, percent, together
from octavo.errors import ExportError, InputError, RuntimeUnavailable, warn_user
from octavo.graph.graph import Graph
from octavo.graph.multiply_adds import multiply_adds
from octavo.model.files.atomic import replacing
from octavo.model.kinds import require_quantized
from octavo.quantization.bfloat16 import in_float32
from octavo.runtimes.agreement import agreement
from octavo.runtimes.examples import random_inputs
from octavo.runtimes.lowered import Agreement, Lowered
from octavo.runtimes.runtime import check_device

if TYPE_CHECKING:
    from octavo.model.model import QuantizedModel
    from octavo.runtimes.executorch.export import Program

_INTEGERS = "quantized_decomposed::"
_NEEDED = (
    "needs ExecuTorch's kernels of quantized operators, which an app links by itself (CMake: "
    "executorch::kernels_quantized) and Python imports (executorch.kernels.quantized)"
)


@dataclass(frozen=True)
class ExecutorchFile(Result):
    """What `export_executorch` wrote. Prints as a table.

    Attributes:
        path: the file.
        flash_bytes: its size.
        inputs: name -> type and sizes.
        fixed: sizes that are open in the model, and fixed in the file, as ``"N=1"``.
        kernels: XNNPACK's kernels on integers -> how many.
        share: of the multiply-adds, what XNNPACK computes on integers.
        outside: layer outside of XNNPACK -> its operator and why.
        agreement: how near the file's results are to the oracle's; ``None`` without a check.
        operators: those that XNNPACK does not run, for which an app has to have kernels.

    Example:
        >>> phone = octavo.quantize(model, calibration=loader, target="executorch")
        >>> octavo.export_executorch(phone, "model.pte").fixed
        ('N=1',)
    """

    path: str
    flash_bytes: int
    inputs: Mapping[str, str]
    fixed: tuple[str, ...]
    kernels: Mapping[str, int]
    share: float
    outside: Mapping[str, str]
    agreement: Agreement | None
    operators: tuple[str, ...] = ()

    def table(self) -> Table:
        rows = tuple((name, str(count)) for name, count in self.kernels.items())
        title = (
            f"{self.path}: {self.flash_bytes / 1e6:.2f} MB, {percent(self.share)} of the "
            "multiply-adds in XNNPACK's kernels on integers"
        )
        return Table(("kernels on integers", "how many"), rows, title, tuple(self._notes()))

    def _notes(self) -> list[str]:
        notes = [f"takes {name} {entry}" for name, entry in self.inputs.items()]
        if self.fixed:
            notes.append(f"a .pte file has fixed sizes, here {', '.join(self.fixed)}")
        notes += [f"outside of XNNPACK: {names}: {why}" for names, why in together(self.outside)]
        if any(name.startswith(_INTEGERS) for name in self.operators):
            notes.append(_NEEDED)
        if self.agreement is not None:
            notes.append(f"against the oracle: {self.agreement}")
        return notes


def export_executorch(
    q: QuantizedModel,
    path: str | os.PathLike[str],
    *,
    batch: int = 1,
    check: bool = True,
) -> ExecutorchFile:
    """Write the model as a program of ExecuTorch, for phones.

    What XNNPACK has kernels for is its delegate's; the rest runs in ExecuTorch's portable kernels
    in float, and the result says which layers these are. Quantize with ``target="executorch"``:
    then whole networks of convolutions and linear layers are one delegate. Static layers, dynamic
    ones (each row of their inputs by its own range) and four-bit weights in groups of a multiple
    of 32, whose scales are rounded to bfloat16, run on integers there.

    Before it is written the file is run by ExecuTorch here, and compared with the oracle.

    Args:
        q: the model.
        path: the file; it is there whole or not at all.
        batch: the size of its batches; other sizes that are open are the example's.
        check: whether the file is run first.

    Returns:
        What was written, and what stayed outside of XNNPACK.

    Raises:
        ExportError: ExecuTorch has no form or no kernel for an operator, the model takes no batches
            of this size, or the file computes something else than the model.
        ArtifactError: the file cannot be written.
        RuntimeUnavailable: the model is not on the CPU.
        MissingExtra: the package executorch is not installed.

    Example:
        >>> phone = octavo.quantize(model, calibration=loader, target="executorch")
        >>> octavo.export_executorch(phone, "model.pte").share
        1.0
    """
    from octavo.runtimes.executorch.export import program_of
    from octavo.runtimes.executorch.meaning import as_xnnpack_rounds

    require_quantized(q, "export_executorch")
    expect(PATH, path=path)
    expect(INTEGER, batch=batch)
    check_device("executorch", q.device)
    graph = as_xnnpack_rounds(in_float32(q.graph))
    tensors = _of_batch(graph, batch)
    program = program_of(graph, tensors)
    samples = [
        sample
        for sample in q.check_inputs(replace(q.options, batch=batch) if check else None)
        if [tensor.shape for tensor in sample] == [tensor.shape for tensor in tensors]
    ]
    near = _proved(program, graph, samples) if check else None
    with replacing(path) as temporary:
        temporary.write_bytes(program.data)
    return _described(os.fspath(path), graph, tensors, program, near)


def _of_batch(graph: Graph, batch: int) -> tuple[Tensor, ...]:
    """Inputs of the file's sizes.

    Raises:
        ExportError: the model takes no batches of this size.
    """
    if batch < 1:
        raise ExportError(f"batch={batch}; a batch has at least one sample")
    try:
        return random_inputs(graph, batch)
    except InputError as error:
        raise ExportError(f"batch={batch}: {error}") from error


def _proved(
    program: Program, graph: Graph, samples: Sequence[Sequence[Tensor]]
) -> Agreement | None:
    """How near a program's results are to the oracle's.

    Raises:
        ExportError: they are farther off than rounding explains, or ExecuTorch cannot run it.
    """
    from octavo.runtimes.executorch.programs import FLOAT_ERROR, LoadedProgram

    try:
        loaded = LoadedProgram(program)
        run = Lowered(lambda *tensors: loaded.run(tensors), {}, {}, float_error=FLOAT_ERROR)
        near = agreement(graph, run, samples) if samples else None
    except (RuntimeUnavailable, InputError) as error:
        raise ExportError(f"ExecuTorch cannot run the file: {error}") from error
    if near is None:
        warn_user(
            "the .pte file was not compared with the model: there are no inputs of its sizes that "
            "the oracle can run on; octavo.verify(q, data) compares the runtimes on yours"
        )
    elif not near.agrees:
        raise ExportError(
            "ExecuTorch computes something else from the file than the model says: its results are "
            f'{near.distance}. octavo.verify(q, runtimes=["executorch"]) names the layer; '
            "check=False writes the file as it is"
        )
    return near


def _described(
    path: str,
    graph: Graph,
    tensors: Sequence[Tensor],
    program: Program,
    near: Agreement | None,
) -> ExecutorchFile:
    counts = multiply_adds(graph)
    total = sum(counts.values())
    inside = sum(count for name, count in counts.items() if name in program.integer)
    entries = list(zip(graph.inputs, tensors, strict=True))
    known = graph.by_name
    return ExecutorchFile(
        path,
        len(program.data),
        {entry.name: f"{entry.meta.dtype}{list(tensor.shape)}" for entry, tensor in entries},
        tuple(
            dict.fromkeys(
                f"{name}={size}"
                for entry, tensor in entries
                for name, size in zip(entry.axes, tensor.shape, strict=True)
                if name
            )
        ),
        dict(Counter(program.integer.values()).most_common()),
        inside / total if total else 1.0,
        {
            name: f"{known[name].short_op} ({why})"
            for name, why in program.outside.items()
            if name in known
        },
        near,
        program.operators,
    )
