"""`export_tflite`: a quantized model as a LiteRT file, which is run before it is written."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from octavo.arguments import NAMES, PATH, expect, optional
from octavo.display import Result, Table, together
from octavo.errors import ExportError, InputError, RuntimeUnavailable, warn_user
from octavo.graph.graph import Graph
from octavo.graph.pixels import Pixels
from octavo.model.files.atomic import replacing
from octavo.model.kinds import require_quantized
from octavo.quantization.bfloat16 import in_float32
from octavo.runtimes.agreement import agreement
from octavo.runtimes.lowered import Agreement, Lowered

if TYPE_CHECKING:
    from torch import Tensor

    from octavo.model.model import QuantizedModel
    from octavo.runtimes.litert.export import Written

_SAMPLES = 4  # of each batch


@dataclass(frozen=True)
class TfliteFile(Result):
    """What `export_tflite` wrote. Prints as a table.

    Attributes:
        path: the file.
        flash_bytes: its size.
        arena_bytes: what its values take while it runs; kernels take some for themselves.
        inputs: name -> type and sizes, in the file's order of axes.
        outputs: likewise.
        fixed: sizes that are open in the model, and fixed in the file, as ``"N=1"``.
        operators: LiteRT's operators, with their numbers -> how many.
        in_float: nodes that run in float -> their operators.
        agreement: LiteRT's kernels -> how near the file's results are to the oracle's.
        refused: LiteRT's kernels that cannot run the file -> why. The reference ones are what
            boards have.

    Example:
        >>> edge = octavo.quantize(model, calibration=loader, target="edge")
        >>> written = octavo.export_tflite(edge, "model.tflite")
        >>> written.agreement["xnnpack"].agrees
        True
    """

    path: str
    flash_bytes: int
    arena_bytes: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    fixed: tuple[str, ...]
    operators: Mapping[str, int]
    in_float: Mapping[str, str]
    agreement: Mapping[str, Agreement]
    refused: Mapping[str, str] = field(default_factory=dict)

    def table(self) -> Table:
        rows = [(name, str(count)) for name, count in self.operators.items()]
        title = (
            f"{self.path}: {self.flash_bytes / 1e6:.2f} MB of flash, an arena of "
            f"{self.arena_bytes / 1e3:.0f} kB"
        )
        return Table(("operators", "how many"), tuple(rows), title, tuple(self._notes()))

    def _notes(self) -> list[str]:
        notes = [f"takes {name} {entry}" for name, entry in self.inputs.items()]
        notes += [f"gives {name} {entry}" for name, entry in self.outputs.items()]
        if self.fixed:
            notes.append(
                f"a .tflite file has fixed sizes, here the example's: {', '.join(self.fixed)}"
            )
        notes += [f"in float: {names}: {kinds}" for names, kinds in together(self.in_float)]
        notes += [
            f"against the oracle, by LiteRT's {kernels} kernels: {near}"
            for kernels, near in self.agreement.items()
        ]
        notes += [
            f"not for LiteRT's {kernels} kernels: {why}" for kernels, why in self.refused.items()
        ]
        return notes


def export_tflite(
    q: QuantizedModel,
    path: str | os.PathLike[str],
    *,
    full_integer: bool = False,
    labels: Sequence[str] | None = None,
    input_scale: float | None = None,
    input_mean: float | Sequence[float] | None = None,
    input_std: float | Sequence[float] | None = None,
    check: bool = True,
) -> TfliteFile:
    """Write the model as a LiteRT (TFLite) file, for phones and boards.

    Quantized layers are LiteRT's operators on integers, with a scale for each channel of weights;
    images have their channels last, in inputs and outputs too. Quantize with ``target="edge"``: all
    is integers then that LiteRT has kernels for. A file is for one sample of the example's sizes.

    Before it is written the file is run by LiteRT's kernels (XNNPACK's, which phones use, the
    optimized and the reference ones) and compared with the oracle.

    Args:
        q: the model.
        path: the file; it is there whole or not at all.
        full_integer: whether the file takes and gives the integers that the model rounds its inputs
            and results to, in place of floats, as microcontrollers want it.
        labels: a name for each class of the first result, which Android's and MediaPipe's
            libraries read from the file's metadata.
        input_scale, input_mean, input_std: what a pixel of 0 to 255 is normalized by before the
            model gets it, ``(pixel * scale - mean) / std``, for these libraries too; as
            `octavo.quantize` takes them, where the model shall do that by itself.
        check: whether the file is run first.

    Returns:
        What was written: sizes in flash and memory, the operators, what runs in float.

    Raises:
        ExportError: an operator has no form in LiteRT, the file computes something else than the
            model by XNNPACK's kernels, or labels and normalization do not fit it.
        ArtifactError: the file cannot be written.
        MissingExtra: the package ai-edge-litert is not installed.

    Example:
        >>> edge = octavo.quantize(model, calibration=loader, target="edge")
        >>> octavo.export_tflite(edge, "model.tflite").in_float
        {}
    """
    require_quantized(q, "export_tflite")
    expect(PATH, path=path)
    optional(NAMES, labels=labels)
    from octavo.runtimes.litert.export import to_tflite
    from octavo.runtimes.litert.metadata import Metadata

    graph = in_float32(q.graph)
    pixels = Pixels.given(input_scale, input_mean, input_std)
    metadata = Metadata(tuple(labels or ()), pixels)
    written = to_tflite(graph, full_integer=full_integer, metadata=metadata)
    near, refused = _compared(written, graph, q.check_inputs()) if check else ({}, {})
    with replacing(path) as temporary:
        temporary.write_bytes(written.data)
    return _described(os.fspath(path), graph, written, near, refused)


def _compared(
    written: Written, graph: Graph, batches: Sequence[Sequence[Tensor]]
) -> tuple[dict[str, Agreement], dict[str, str]]:
    """How near each of LiteRT's kernels is to the oracle, and why some cannot run the file.

    Raises:
        ExportError: those that phones use are farther off than rounding explains.
    """
    from octavo.runtimes.litert.export import example_shapes
    from octavo.runtimes.litert.interpreter import Program
    from octavo.runtimes.litert.kernels import KERNELS, oracle_of

    shapes = example_shapes(graph)
    samples = [sample for batch in batches for sample in _single(graph, batch, shapes)]
    found: dict[str, Agreement] = {}
    refused: dict[str, str] = {}
    for kernels, record in KERNELS.items():
        try:
            program = Program(written, kernels)
            oracle = oracle_of(graph, written.made, record)
            run = Lowered(
                lambda *tensors, program=program: program.run(tensors), {}, {}, oracle=oracle
            )
            near = agreement(graph, run, samples) if samples else None
        except (RuntimeUnavailable, InputError) as error:
            if kernels == _REQUIRED:
                raise ExportError(f"LiteRT cannot run the file: {error}") from error
            refused[kernels] = str(error)
            continue
        if near is None:
            warn_user(
                "the .tflite file was not compared with the model: there are no inputs of its "
                "sizes that the oracle can run on; octavo.verify(q, data) compares on yours"
            )
            break
        if kernels == _REQUIRED and not near.agrees:
            raise ExportError(
                f"LiteRT computes something else from the file than the model says: its results "
                f"are {near.distance}. octavo.verify(q) names the layer; check=False writes the "
                "file as it is"
            )
        found[kernels] = near
    return found, refused


_REQUIRED = "xnnpack"  # the kernels that LiteRT takes by default


def _single(
    graph: Graph, batch: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]
) -> list[list[Tensor]]:
    """The first samples of a batch one by one, if they have the file's sizes."""
    alone = []
    for index in range(_SAMPLES):
        sample = [
            tensor
            if entry.batch_axis is None
            else tensor[(slice(None),) * entry.batch_axis + (slice(index, index + 1),)]
            for entry, tensor in zip(graph.inputs, batch, strict=True)
        ]
        if [tuple(tensor.shape) for tensor in sample] == list(shapes):
            alone.append(sample)
    return alone if any(entry.batch_axis is not None for entry in graph.inputs) else alone[:1]


def _counted(kinds: Sequence[str]) -> str:
    """``"2 ADD float32, TANH float32"``: each kind once, those first that come first."""
    counts = Counter(kinds)
    return ", ".join(kind if count == 1 else f"{count} {kind}" for kind, count in counts.items())


def _described(
    path: str,
    graph: Graph,
    written: Written,
    near: Mapping[str, Agreement],
    refused: Mapping[str, str],
) -> TfliteFile:
    from octavo.runtimes.litert.export import example_shapes

    counts = Counter(kind for kinds in written.kernels.values() for kind in kinds)
    floats = {
        name: _counted(kinds)
        for name, kinds in written.kernels.items()
        if any(kind.endswith("float32") for kind in kinds)
        and name in graph.by_name
        and not graph.by_name[name].op.startswith("octavo.")
    }
    fixed = {
        name: size
        for entry, shape in zip(graph.inputs, example_shapes(graph), strict=True)
        for name, size in zip(entry.axes, shape, strict=True)
        if name
    }
    return TfliteFile(
        path,
        len(written.data),
        written.arena,
        {
            entry.name: f"{entry.value.form.dtype}{list(entry.value.shape)}"
            for entry in written.inputs
        },
        {
            entry.name: f"{entry.value.form.dtype}{list(entry.value.shape)}"
            for entry in written.outputs
        },
        tuple(f"{name}={size}" for name, size in fixed.items()),
        dict(counts.most_common()),
        floats,
        near,
        refused,
    )
