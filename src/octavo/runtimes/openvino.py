"""The ``openvino`` runtime: the graph as an ONNX model, compiled by OpenVINO for this CPU.

What runs in int8 is read from the compiled model, since a quantized model that loads is not yet one
that runs on integers.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.errors import RuntimeUnavailable, optional_import
from octavo.graph.graph import Graph
from octavo.graph.open_sizes import batch_sizes
from octavo.graph.qdq import rounding_behind
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
# computes concatenations of int8 tensors with zero points wrongly, gaps, what it fuses behind a
# mean of three axes, and several channels of one at a single voxel; and it moves a shift behind an
# average, and so behind the zeros that this counts. A convolution that adds to its result does not
# round it before. Where a concatenation is quantized behind it, and again after next to nothing (a
# relu), its compiler ends the process. It does not hold callers to a guard of squeeze(). For ONNX's
# hard sigmoid it has no kernel that a convolution takes in, for what it is made of it has.
_DIALECT = Dialect(
    integer_bias=False,
    integer_products=False,
    integer_recurrence=False,
    integer_gaps=False,
    integer_multipliers=False,
    means_of_four=True,
    unsigned=True,
    symmetric=not cpu.saturates(),  # of int8 it makes products that overflow without VNNI
    late_rounding=True,
    clipped_hardsigmoid=True,
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


# Names of the types that its tensors share with numpy's arrays, and with torch's.
_NUMPYS = frozenset("f32 f64 f16 i8 u8 i16 i32 i64 boolean".split())
_WITH_FEATURES = 3  # dimensions, or more
_MOST_PROGRAMS = 8
# Input and axis -> size.
Sizes = dict[tuple[str, int], int]


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
    batch = {} if options.batch is None else dict.fromkeys(batch_sizes(graph), options.batch)
    programs = _Programs(graph, options, lambda sides: compiled_model(data, options, sides | batch))
    integer, otherwise = _executed(programs.of([entry.sizes for entry in graph.inputs]).compiled)
    kernels, fallbacks = account(graph, integer, otherwise, "openvino")
    return Lowered(
        programs.run,
        kernels,
        fallbacks,
        float_error=_ERRORS[options.precision],
        compiled_for=programs.sizes_of if programs.sides else None,
    )


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
    return Lowered(_Programs(graph, Options(), lambda sides: compiled).run, {}, {})


# What `from_file` sets, in words.
_SETTINGS = (
    'core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", '
    '"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0})'
)


def compiled_model(data: bytes, options: Options, sizes: Sizes | None = None, **more: Any) -> Any:
    """An ONNX file as OpenVINO compiles it here.

    Args:
        data: the file.
        options: how it is run.
        sizes: those that are open in the file and known now, by input and axis.
        more: settings of OpenVINO's own.

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
        if sizes:
            model.reshape(_with_sizes(model, sizes))
        if options.cache is not None:
            return _from_cache(core, model, settings | {"CACHE_DIR": str(options.cache)})
        return core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise RuntimeUnavailable(f"OpenVINO cannot compile the model: {_reason(error)}") from error


def _with_sizes(model: Any, known: Sizes) -> dict[str, Any]:
    """The inputs' shapes with numbers where sizes are known, by input and axis."""
    openvino, shapes = package(), {}
    for entry in model.inputs:
        given = {axis: size for (name, axis), size in known.items() if name in entry.get_names()}
        shapes[entry.get_any_name()] = openvino.PartialShape(
            [
                openvino.Dimension(given[axis]) if axis in given else size
                for axis, size in enumerate(entry.get_partial_shape())
            ]
        )
    return shapes


def _from_cache(core: Any, model: Any, settings: dict[str, Any]) -> Any:
    """Compiled, or read from the folder; without it where the folder cannot be used."""
    try:
        return core.compile_model(model, "CPU", settings)
    except RuntimeError:
        without = {key: value for key, value in settings.items() if key != "CACHE_DIR"}
        return core.compile_model(model, "CPU", without)


def sides(graph: Graph) -> Sizes:
    """The open sizes that OpenVINO has to know, as they are in the example: those of images and
    sequences but for the batch. Of texts, which are token ids, only where their integers have a
    mean.
    """
    means = any(n.short_op == "mean" and rounding_behind(graph, n.args[0]) for n in graph.nodes)
    least = 0 if means else _WITH_FEATURES
    return {
        (entry.name, axis): entry.sizes[axis]
        for entry in graph.inputs
        for axis, size in enumerate(entry.meta.shape)
        if size is None and len(entry.axes) >= least and axis != entry.batch_axis
    }


class _Program:
    """A model as it was compiled for some sizes."""

    def __init__(self, compiled: Any, graph: Graph) -> None:
        self.compiled = compiled
        # A request serves one call at a time: one for each that overlap.
        self.idle: deque[Any] = deque()
        self.read = _inputs_read(compiled, graph)
        self.tensor = package().Tensor if _reads_memory(compiled) else None
        self.process = os.getpid()

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the model gives.

        Raises:
            RuntimeUnavailable: OpenVINO cannot run it.
        """
        count = len(self.compiled.outputs)
        arrays = [as_array(tensors[index]) for index in self.read]
        request = _taken(self.idle) or self.compiled.create_infer_request()
        try:
            _infer(request, self._given(request, arrays), os.getpid() != self.process)
            # Copied, since the request's next call writes to the same memory. To give OpenVINO
            # other memory for each call takes longer than to copy what classifiers and encoders
            # return.
            results = [request.get_output_tensor(index).data for index in range(count)]
            return tuple(torch.from_numpy(np.array(result)) for result in results)
        except RuntimeError as error:
            words = f"OpenVINO cannot run these inputs: {_reason(error)}"
            raise RuntimeUnavailable(words) from error
        finally:
            self.idle.append(request)

    def _given(self, request: Any, arrays: list[Any]) -> list[Any] | None:
        """What is given with a call: nothing where the request is told where its inputs are.

        Which takes a third of the time that it takes with the call.
        """
        if self.tensor is None:
            return arrays
        for index, array in enumerate(arrays):
            request.set_input_tensor(index, self.tensor(array, shared_memory=True))
        return None


class _Programs:
    """A model for any sizes: compiled once for each size of images or sequences that it met last.

    At open sizes OpenVINO computes concatenations, moves and means of integers wrongly, which it
    does right where it knows the sides. Calls may overlap: each size is compiled once for all.

    Args:
        graph: the model.
        options: how it is run.
        compile_for: makes it for images of some sides.
    """

    def __init__(self, graph: Graph, options: Options, compile_for: Callable[[Sizes], Any]) -> None:
        self.graph, self.batch, self.compile_for = graph, options.batch, compile_for
        self.sides = sides(graph)
        self.known: OrderedDict[tuple[int, ...], _Program] = OrderedDict()
        self.looking, self.compiling = threading.Lock(), threading.Lock()

    def of(self, shapes: Sequence[Sequence[int]]) -> _Program:
        """The program for inputs of these shapes."""
        sizes = self._sizes(shapes)
        return self._met(sizes) or self._compiled(sizes)

    def sizes_of(self, tensors: Sequence[Tensor]) -> tuple[int, ...]:
        """The sizes of inputs that they need a program of their own for."""
        return self._sizes([tensor.shape for tensor in tensors])

    def _sizes(self, shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
        of_input = dict(zip(self.graph.input_names(), shapes, strict=True))
        return tuple(of_input[name][axis] for name, axis in self.sides)

    def _met(self, sizes: tuple[int, ...]) -> _Program | None:
        """The program for sizes that were met before; they are the last ones met now."""
        with self.looking:
            if sizes in self.known:
                self.known.move_to_end(sizes)
            return self.known.get(sizes)

    def _compiled(self, sizes: tuple[int, ...]) -> _Program:
        """The program for other sizes; calls of known sizes go on meanwhile."""
        with self.compiling:
            program = self._met(sizes)  # another call had the same sizes
            if program is None:
                compiled = self.compile_for(dict(zip(self.sides, sizes, strict=True)))
                program = _Program(compiled, self.graph)
                with self.looking:
                    self.known[sizes] = program
                    if len(self.known) > _MOST_PROGRAMS:
                        self.known.popitem(last=False)
            return program

    def run(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What the model gives.

        Raises:
            InputError: the batch is not the one that it was lowered for.
            RuntimeUnavailable: OpenVINO cannot run it.
        """
        check_batch(self.graph, tensors, self.batch)
        return self.of([tensor.shape for tensor in tensors]).run(tensors)


def _reads_memory(compiled: Any) -> bool:
    """Whether a program can read its inputs where they are: no number, and of a type of numpy's."""
    return all(
        entry.get_partial_shape().rank.get_length() > 0
        and entry.get_element_type().get_type_name() in _NUMPYS
        for entry in compiled.inputs
    )


def _infer(request: Any, arrays: list[Any] | None, forked: bool) -> None:
    """Run a request, on this thread if it ends with the process, else on OpenVINO's own.

    ``None`` are the inputs that it was told before.

    A thread that has run one keeps a part of the model until it ends. Where another thread destroys
    the model at that moment, OpenVINO ends the process. A process that was forked off the one that
    compiled the model has no threads of OpenVINO's: to wait for them would never end.
    """
    if forked or threading.current_thread() is threading.main_thread():
        request.infer(arrays, share_inputs=True, share_outputs=True)
    else:  # which takes longer by the time that waking a thread takes
        request.start_async(arrays, share_inputs=True)
        request.wait()


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
