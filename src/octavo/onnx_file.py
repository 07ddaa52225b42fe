"""`export_onnx`: a quantized model as an ONNX file."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from octavo.errors import ExportError
from octavo.targets import TARGETS

if TYPE_CHECKING:
    from octavo.model import QuantizedModel


def export_onnx(
    q: QuantizedModel, path: str | os.PathLike[str], *, runtime: str = "onnxruntime"
) -> None:
    """Write the model as ONNX: opset 21, quantize and dequantize nodes around integer weights.

    Weights are stored as the integers that they are (int4 two to a byte), batch and other open
    sizes stay open, nodes and tensors have the names of the modules. What is rounded at each call
    (``mode="dynamic"``) becomes ``DynamicQuantizeLinear`` and ``MatMulInteger`` where the runtime
    fuses these, and an LSTM ``com.microsoft.DynamicQuantizeLSTM`` for ONNX Runtime, but not for
    the target "x86-avx2": its kernel would overflow there on the weights that an LSTM has.

    Args:
        q: the model.
        path: the file; it is there whole or not at all.
        runtime: for whom, ``"onnxruntime"`` or ``"openvino"``. Both run both files and mean the
            same by them; each is quicker with its own.

    Raises:
        ExportError: an operator has no ONNX form, the runtime is unknown, or the model is larger
            than the 2 GB of one file.
        ArtifactError: the file cannot be written.
        MissingExtra: the package onnx is not installed.

    Example:
        >>> octavo.export_onnx(q, "model.onnx")  # doctest: +SKIP
    """
    from octavo.onnx.dialects import DIALECTS
    from octavo.onnx.export import save_onnx, to_onnx

    if runtime not in DIALECTS:
        raise ExportError(f"no ONNX dialect for runtime {runtime!r}; one of {sorted(DIALECTS)}")
    dialect = DIALECTS[runtime]
    if TARGETS[q.target].weight_without_pairs is not None:
        dialect = replace(dialect, dynamic_lstm=False)
    save_onnx(to_onnx(q.graph, dialect), path)
