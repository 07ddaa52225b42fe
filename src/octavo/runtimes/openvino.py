"""The ``openvino`` runtime: the graph as an ONNX model, compiled by OpenVINO for this CPU.

What runs in int8 is read from the compiled model, since a quantized model that loads is not yet one
that runs on integers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.errors import RuntimeUnavailable, optional_import
from octavo.graph.graph import Graph
from octavo.runtimes import cpu
from octavo.runtimes.compiled_kernels import account
from octavo.runtimes.foreign import as_array, check_batch
from octavo.runtimes.lowered import Lowered
from octavo.runtimes.onnx.dialect import Dialect
from octavo.runtimes.onnx.export import to_onnx
from octavo.runtimes.onnx.writer import layer_of, serialized
from octavo.runtimes.options import Options
from octavo.runtimes.runtime import OnnxReader, Runtime
from octavo.runtimes.saturation import overflowing, with_float_weights

# Its kernels add float biases, its own dynamic quantization starts from float products, and its
# recurrent layers want constant weights, which it does not make of integers in every model. It
# computes concatenations of int8 tensors with zero points wrongly, gaps, and what it fuses behind a
# mean of three axes; and it moves a shift behind an average, and so behind the zeros that this
# counts. A convolution that adds to its result does not round it before. Where a
# concatenation is quantized behind it, and again after next to nothing (a relu), its compiler ends
# the process. It does not hold callers to a guard of squeeze().
_DIALECT = Dialect(
    integer_bias=False,
    integer_products=False,
    integer_recurrence=False,
    integer_gaps=False,
    means_of_four=True,
    unsigned=True,
    symmetric=not cpu.saturates(),  # of int8 it makes products that overflow without VNNI
    late_rounding=True,
    integer_concatenations=True,
    squeezes_batches=False,
    fenced_summands=True,
    fenced_padding=True,
)
# Left to itself OpenVINO computes what is float in bfloat16 on CPUs that have it, and rounds the
# float input of a layer with integer weights to eight bits.
_EXACT = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
# Of a float operator's result: it approximates functions.
_ERRORS = {None: 2.0**-15, "float32": 2.0**-15, "bfloat16": 2.0**-7}
_PRECISION = {None: "f32", "float32": "f32", "bfloat16": "bf16"}


def package() -> Any:
    """OpenVINO.

    Raises:
        MissingExtra: it is not installed.
    """
    with optional_import("openvino", "openvino", "run models with OpenVINO"):
        import openvino
    return openvino


def lower(graph: Graph, device: torch.device, options: Options) -> Lowered:
    """Compile a QDQ graph.

    Raises:
        RuntimeUnavailable: OpenVINO cannot compile it.
        ExportError: an operator has no ONNX form.
        MissingExtra: OpenVINO is not installed.
    """
    exact, reasons = with_float_weights(graph)
    unguarded = replace(exact, guards=())  # a call's sizes are checked before it comes here
    lowered = from_file(serialized(to_onnx(unguarded, _DIALECT)), graph, options)
    return replace(lowered, fallbacks={**lowered.fallbacks, **reasons})


def from_file(data: bytes, graph: Graph, options: Options) -> Lowered:
    """Compile the content of an ONNX file that was made of this graph.

    Raises:
        RuntimeUnavailable: OpenVINO cannot compile it.
    """
    compiled = compiled_model(data, options)
    integer, otherwise = _executed(compiled)
    kernels, fallbacks = account(graph, integer, otherwise, "openvino")
    run = _runner(compiled, graph, options.batch)
    lowered = Lowered(run, kernels, fallbacks)
    return replace(lowered, float_error=_ERRORS[options.precision])


def as_others_load(data: bytes, graph: Graph) -> Lowered:
    """The same with OpenVINO's own settings.

    Raises:
        RuntimeUnavailable: OpenVINO cannot compile it.
    """
    core = package().Core()
    try:
        compiled = core.compile_model(core.read_model(data), "CPU")
    except RuntimeError as error:
        raise RuntimeUnavailable(f"OpenVINO cannot compile the model: {_reason(error)}") from error
    return Lowered(_runner(compiled, graph, None), {}, {})


# What `from_file` sets, in words.
_SETTINGS = (
    'core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", '
    '"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0})'
)


def compiled_model(data: bytes, options: Options, **more: Any) -> Any:
    """An ONNX file as OpenVINO compiles it here; ``more`` are settings of its own.

    Raises:
        RuntimeUnavailable: it cannot.
    """
    core = package().Core()
    settings: dict[str, Any] = {
        **more,
        **_EXACT,
        "INFERENCE_PRECISION_HINT": _PRECISION[options.precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": options.threads or torch.get_num_threads(),
    }
    try:
        model = core.read_model(data)
        if options.batch is not None:
            model.reshape(_with_batch(model, options.batch))
        if options.cache is not None:
            return _from_cache(core, model, settings | {"CACHE_DIR": str(options.cache)})
        return core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise RuntimeUnavailable(f"OpenVINO cannot compile the model: {_reason(error)}") from error


def _with_batch(model: Any, batch: int) -> dict[str, Any]:
    """The inputs' shapes with a number for the batch, where it is open."""
    openvino, shapes = package(), {}
    for entry in model.inputs:
        first, *rest = list(entry.get_partial_shape())
        shapes[entry.get_any_name()] = openvino.PartialShape(
            [openvino.Dimension(batch) if first.is_dynamic else first, *rest]
        )
    return shapes


def _from_cache(core: Any, model: Any, settings: dict[str, Any]) -> Any:
    """Compiled, or read from the folder; without it where the folder cannot be used."""
    try:
        return core.compile_model(model, "CPU", settings)
    except RuntimeError:
        without = {key: value for key, value in settings.items() if key != "CACHE_DIR"}
        return core.compile_model(model, "CPU", without)


def _runner(compiled: Any, graph: Graph, batch: int | None) -> Callable[..., tuple[Any, ...]]:
    idle: deque[Any] = deque()  # a request serves one call at a time: one for each that overlap
    count = len(compiled.outputs)
    read = _inputs_read(compiled, graph)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        check_batch(tensors, batch)
        arrays = [as_array(tensors[index]) for index in read]
        request = _taken(idle) or compiled.create_infer_request()
        try:
            results = request.infer(arrays, share_inputs=True, share_outputs=True)
            # Copied, since the request's next call writes to the same memory. To give OpenVINO
            # other memory for each call takes longer than to copy what classifiers and encoders
            # return.
            return tuple(torch.from_numpy(np.array(results[index])) for index in range(count))
        except RuntimeError as error:
            words = f"OpenVINO cannot run these inputs: {_reason(error)}"
            raise RuntimeUnavailable(words) from error
        finally:
            idle.append(request)

    return run


def _taken(idle: deque[Any]) -> Any:
    """One that no other call has; ``None`` where there is none."""
    try:
        return idle.pop()
    except IndexError:
        return None


def _inputs_read(compiled: Any, graph: Graph) -> list[int]:
    """Which of the graph's inputs the model reads, in the model's order: it drops the others."""
    places = {entry.name: index for index, entry in enumerate(graph.inputs)}
    names = [entry.get_names() for entry in compiled.inputs]
    return [next(places[name] for name in known if name in places) for known in names]


def _executed(compiled: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Layer -> its kernel: those on integers, and the others."""
    integer: dict[str, str] = {}
    otherwise: dict[str, str] = {}
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        kernel = info["primitiveType"].astype(str)
        kernels = integer if kernel.endswith(("_I8", "_i8", "_u8", "_U8")) else otherwise
        for name in info["originalLayersNames"].astype(str).split(","):
            kernels[layer_of(name)] = f"openvino {kernel}"
    return integer, otherwise


def _reason(error: Exception) -> str:
    """The last line that says something: OpenVINO's first ones name its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _obstacle(graph: Graph) -> str:
    if cpu.saturates() and overflowing(graph):
        return "this CPU has no VNNI, on which OpenVINO's kernels overflow on some of its weights"
    return ""


RUNTIME = Runtime(
    lower,
    options=("threads", "batch", "cache"),
    islands=False,
    package=package,
    onnx=OnnxReader(_DIALECT, from_file, as_others_load, _SETTINGS, _obstacle),
)
