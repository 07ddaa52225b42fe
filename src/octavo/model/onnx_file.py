"""`export_onnx`: a quantized model as an ONNX file, which is run before it is written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from octavo.arguments import PATH, TEXT, called_rightly, expect
from octavo.errors import ExportError, InputError, MissingExtra, OctavoWarning, RuntimeUnavailable
from octavo.graph.graph import Graph
from octavo.model.files.atomic import replacing
from octavo.model.kinds import require_quantized
from octavo.quantization.bfloat16 import in_float32
from octavo.quantization.targets import target
from octavo.runtimes import RUNTIMES, OnnxReader, Options
from octavo.runtimes.agreement import agreement

if TYPE_CHECKING:
    from torch import Tensor

    from octavo.model.model import QuantizedModel


@called_rightly()
def export_onnx(
    q: QuantizedModel,
    path: str | os.PathLike[str],
    *,
    runtime: str = "onnxruntime",
    check: bool = True,
) -> None:
    """Write the model as ONNX: quantize and dequantize nodes around integer weights.

    Opset 20, or 21 where integers have four or sixteen bits or weights have scales of groups.
    Weights are stored as the integers that they are (int4 two to a byte), batch and other open
    sizes stay open, nodes and tensors have the names of the modules. What is rounded at each call
    (``mode="dynamic"``) becomes ``DynamicQuantizeLinear`` and ``MatMulInteger`` where the runtime
    fuses these, and an LSTM ``com.microsoft.DynamicQuantizeLSTM`` for ONNX Runtime, but not for
    the target "x86-avx2": its kernel would overflow there on the weights that an LSTM has.

    Before it is written the file is run in its runtime, if that is installed, and compared with the
    oracle. A warning says so where it agrees only under settings that are not the runtime's own.

    Args:
        q: the model.
        path: the file; it is there whole or not at all.
        runtime: for whom, ``"onnxruntime"`` or ``"openvino"``; each is quicker with its own file.
            OpenVINO needs its own where activations are int8 with zero points (target "edge"), and
            where something is concatenated, at which its compiler may end the process otherwise.
        check: whether the file is run first.

    Raises:
        ExportError: an operator has no ONNX form, the runtime is unknown, the model is larger
            than the 2 GB of one file, or the file computes something else than the model.
        ArtifactError: the file cannot be written.
        MissingExtra: the package onnx is not installed.

    Example:
        >>> octavo.export_onnx(q, "model.onnx")
    """
    from octavo.runtimes.onnx.export import to_onnx
    from octavo.runtimes.onnx.writer import serialized

    require_quantized(q, "export_onnx")
    expect(PATH, path=path)
    expect(TEXT, runtime=runtime)
    reader = RUNTIMES[runtime].onnx if runtime in RUNTIMES else None
    if reader is None:
        known = sorted(name for name, record in RUNTIMES.items() if record.onnx is not None)
        raise ExportError(f"there is no ONNX dialect for the runtime {runtime!r}; one of {known}")
    dialect = replace(reader.dialect, blocks=False, quick_gelu=False)  # others read the file too
    if q.target != runtime:
        dialect = replace(dialect, integer_clips=False, integer_blocks=False)
    if target(q.target).weight_without_pairs is not None:
        dialect = replace(dialect, dynamic_lstm=False)
    data = serialized(to_onnx(q.graph, dialect))
    if check:
        _prove(data, in_float32(q.graph), runtime, reader, q.check_inputs())
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _prove(
    data: bytes,
    graph: Graph,
    runtime: str,
    reader: OnnxReader,
    batches: Sequence[Sequence[Tensor]],
) -> None:
    """Compare a file with the oracle, as Octavo loads it and as others do.

    Raises:
        ExportError: it computes something else as Octavo loads it.
    """
    obstacle = reader.obstacle(graph)
    if obstacle:
        _warn(obstacle)
        return
    try:
        exact = agreement(graph, reader.load(data, graph, Options()), batches)
        plain = agreement(graph, reader.load_plainly(data, graph), batches)
    except MissingExtra as error:
        _warn(str(error))
        return
    except (RuntimeUnavailable, InputError) as error:
        raise ExportError(f"{runtime} cannot run the file: {error}") from error
    if exact is None or plain is None:
        _warn(
            "there are no inputs that the oracle can run on; octavo.verify(q, data) compares the "
            "runtimes on yours"
        )
    elif not exact.agrees:
        raise ExportError(
            f"{runtime} computes something else from the file than the model says: its results are "
            f"{exact.distance}. octavo.verify(q) names the layer; check=False writes the "
            "file as it is"
        )
    elif not plain.agrees:
        warnings.warn(
            f"with its own settings {runtime} computes something else from this file here "
            f"({plain.sqnr_db:.1f} dB from the oracle); load it with {reader.settings}, under "
            f"which it agrees ({exact})",
            OctavoWarning,
            stacklevel=3,
        )


def _warn(why: str) -> None:
    warnings.warn(f"the ONNX file was not compared with the model: {why}", OctavoWarning, 4)
