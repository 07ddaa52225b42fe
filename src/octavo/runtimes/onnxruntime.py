"""The ``onnxruntime`` runtime: the graph as an ONNX model, run by ONNX Runtime on the CPU.

What runs in int8 is read from the model that ONNX Runtime made of it.

Tested in tests/runtimes/test_foreign_runtimes.py.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.errors import RuntimeUnavailable, first_line, optional_import
from octavo.graph.graph import Graph
from octavo.graph.open_sizes import batch_name
from octavo.runtimes import cpu
from octavo.runtimes.compiled_kernels import account
from octavo.runtimes.foreign import as_array, check_batch
from octavo.runtimes.lowered import Lowered
from octavo.runtimes.onnx import blocks
from octavo.runtimes.onnx.dialect import Dialect
from octavo.runtimes.onnx.export import to_onnx
from octavo.runtimes.onnx.writer import layer_of, node_kinds, serialized
from octavo.runtimes.options import Options
from octavo.runtimes.runtime import OnnxReader, Runtime
from octavo.runtimes.saturation import overflowing, with_own_weights

# Its kernels for integers take int32 biases, it fuses products of integers with what stands around
# them, and it has operators for an LSTM on integers, and for weights that alone are. Of linear
# layers its kernel for two matrices alone takes the bias in, and rounds what it gives.
_DIALECT = Dialect(
    integer_bias=True,
    integer_products=True,
    dynamic_lstm=True,
    rows_as_matrix=True,
    loaded_as_floats=True,
    states_left_out=True,
    integer_blocks=True,
    quick_gelu=True,
    integer_clips=True,
    blocks=not cpu.saturates(),
)
_ERRORS_ONLY = 3
# The first makes float layers of integer products wherever shapes are known, the second integers of
# float weights and biases between quantized tensors; the kernel that the third puts in the place of
# a sum and a normalization takes several times as long as the two.
UNWANTED = ["MatMulAddFusion", "WeightBiasQuantization", "SkipLayerNormFusion"]
# Operators on integers, besides those called QLinear...
_INTEGER = frozenset(
    """
    QGemm QAttention MatMulInteger MatMulIntegerToFloat DynamicQuantizeMatMul ConvInteger
    DynamicQuantizeLSTM QOrderedMatMul MatMulNBits GatherBlockQuantized
    """.split()
)
# Fusing adds to an operator's name.
_ADDED = re.compile(r"(_token_\d+|_quant)+$")


def package() -> Any:
    """ONNX Runtime.

    Raises:
        MissingExtra: it is not installed.
    """
    with optional_import("onnxruntime", "onnxruntime", "run models with ONNX Runtime"):
        import onnxruntime
    return onnxruntime


def lower(graph: Graph, device: torch.device, options: Options) -> Lowered:
    """Load a QDQ graph.

    Raises:
        RuntimeUnavailable: ONNX Runtime cannot load it.
        ExportError: an operator has no ONNX form.
        MissingExtra: ONNX Runtime is not installed.
    """
    # A call's sizes are checked before it comes here. And its exact kernels need weights of another
    # type, which it makes of each once.
    written = with_own_weights(graph) if _needs_exact_kernels(graph) else graph
    unguarded = replace(written, guards=())
    return from_file(serialized(to_onnx(unguarded, _DIALECT)), graph, options)


def _needs_exact_kernels(graph: Graph) -> bool:
    return cpu.saturates() and bool(overflowing(graph))


def from_file(data: bytes, graph: Graph, options: Options) -> Lowered:
    """Load the content of an ONNX file that was made of this graph.

    Raises:
        RuntimeUnavailable: ONNX Runtime cannot load it.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder, "optimized.onnx")
        session = _session(data, graph, options, optimized)
        kinds = node_kinds(optimized)
    integer, otherwise = _executed(kinds)
    kernels, fallbacks = account(graph, integer, otherwise, "onnxruntime")
    run = _runner(session, graph, options.batch)
    return Lowered(run, kernels, fallbacks, rounds=_rounding(kernels))


def as_others_load(data: bytes, graph: Graph) -> Lowered:
    """The same with ONNX Runtime's own settings.

    Raises:
        RuntimeUnavailable: ONNX Runtime cannot load it.
    """
    onnxruntime = package()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _ERRORS_ONLY
    try:
        session = onnxruntime.InferenceSession(data, settings, ["CPUExecutionProvider"])
    except Exception as error:  # its errors share no base of their own
        raise RuntimeUnavailable(f"ONNX Runtime cannot load the model: {_reason(error)}") from error
    return Lowered(_runner(session, graph, None), {}, {})


# What `from_file` sets, in words.
_SETTINGS = (
    'SessionOptions().add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1") and '
    'InferenceSession(..., disabled_optimizers=["WeightBiasQuantization"])'
)


def session_settings(graph: Graph, options: Options) -> Any:
    """ONNX Runtime's settings of a session, but for the optimizers that are `UNWANTED`."""
    settings = package().SessionOptions()
    settings.intra_op_num_threads = options.threads or torch.get_num_threads()
    settings.log_severity_level = _ERRORS_ONLY
    # Left to itself it rounds the float input of a product with integer weights to eight bits.
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if _needs_exact_kernels(graph):
        # Slower ones, for CPUs without VNNI, that sum no pairs of products in int16.
        settings.add_session_config_entry("session.x64quantprecision", "1")
    if options.batch is not None:
        settings.add_free_dimension_override_by_name(batch_name(graph), options.batch)
    return settings


def _session(data: bytes, graph: Graph, options: Options, optimized: Path) -> Any:
    settings = session_settings(graph, options)
    settings.optimized_model_filepath = str(optimized)
    try:
        return package().InferenceSession(
            data,
            settings,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=UNWANTED,
        )
    except Exception as error:  # its errors share no base of their own
        raise RuntimeUnavailable(f"ONNX Runtime cannot load the model: {_reason(error)}") from error


def _runner(session: Any, graph: Graph, batch: int | None) -> Callable[..., tuple[Any, ...]]:
    read = {entry.name for entry in session.get_inputs()}
    names = graph.input_names()

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        check_batch(graph, tensors, batch)
        arrays = map(as_array, tensors)
        feeds = {n: array for n, array in zip(names, arrays, strict=True) if n in read}
        try:
            results = session.run(None, feeds)
        except Exception as error:  # its errors share no base of their own
            words = f"ONNX Runtime cannot run these inputs: {_reason(error)}"
            raise RuntimeUnavailable(words) from error
        return tuple(torch.from_numpy(np.asarray(array)) for array in results)

    return run


def _executed(kinds: list[tuple[str, str]]) -> tuple[dict[str, str], dict[str, str]]:
    """Layer -> its operator: those on integers, and the others."""
    integer: dict[str, str] = {}
    otherwise: dict[str, str] = {}
    for name, kind in kinds:
        kernels = integer if kind.startswith("QLinear") or kind in _INTEGER else otherwise
        kernels[layer_of(_ADDED.sub("", name))] = f"onnxruntime {kind}"
    return integer, otherwise


# Its LSTM on integers rounds its states as well, to 255 steps, and adds up what that makes.
_ROUNDS = {"DynamicQuantizeLSTM": 4 / 255, "MatMulNBits": blocks.ROUNDS}


def _rounding(kernels: Mapping[str, str]) -> dict[str, float]:
    """Layers whose kernels round what the oracle does not, and how far."""
    operators = {name: kernel.removeprefix("onnxruntime ") for name, kernel in kernels.items()}
    return {name: _ROUNDS[kind] for name, kind in operators.items() if kind in _ROUNDS}


def _reason(error: Exception) -> str:
    """The first line, without the library's codes in front."""
    line = first_line(error)
    return line.rsplit(" : ", 1)[-1]


RUNTIME = Runtime(
    lower,
    options=("threads", "batch"),
    bfloat16=False,
    islands=False,
    package=package,
    onnx=OnnxReader(_DIALECT, from_file, as_others_load, _SETTINGS),
)
