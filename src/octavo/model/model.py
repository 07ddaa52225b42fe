"""`QuantizedModel`: a quantized graph with its plan, as an ``nn.Module`` that runs."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from octavo.arguments import COUNT, PATH, TEXT, expect, optional
from octavo.errors import (
    ArtifactError,
    InputError,
    OctavoError,
    RuntimeDisagrees,
    RuntimeUnavailable,
    first_line,
)
from octavo.graph.batches import Signature
from octavo.graph.calls import PlainCalls, build_output, filled_output
from octavo.graph.graph import GRAPH, Graph, TensorMeta
from octavo.graph.pixels import Pixels
from octavo.graph.program import run_of
from octavo.graph.records import with_objects
from octavo.graph.tracing import call_whole, refuse_scripting
from octavo.model import artifact
from octavo.model.compared_inputs import inputs_to_check, is_small
from octavo.model.configuration import configuration
from octavo.model.fallbacks import as_planned, warn_of
from octavo.model.forward import Asked, Signed, arguments_of
from octavo.model.gradients import tell_where_gradients_end
from octavo.model.packed_buffers import let_go
from octavo.model.place import Place
from octavo.model.state import extra_state, restored
from octavo.model.summary import Summary, summarize
from octavo.model.tunings import BUDGET_S, Tunings, here, trials, warn_unusable, with_words
from octavo.progress import track
from octavo.quantization.nonfinite_inputs import Watched, run_around
from octavo.quantization.plan import PLAN, Plan
from octavo.runtimes import FASTEST, ORACLE, Lowered, Options, cpu, default_runtime, lower
from octavo.runtimes.runtime import has_own_threads, runtime_of
from octavo.runtimes.tuning import Tuning, Variant, lower_variant

# One thread at a time makes a model ready: two that call a new model at once do it once, and the
# compilers of some runtimes are for one thread.
_LOWERING = threading.RLock()


class QuantizedModel(nn.Module):
    """A quantized model: call it as the float model was called.

    It is made by `octavo.quantize`, `octavo.convert` and `octavo.load`. Its tensors are buffers
    under the float model's own names, so ``to(device)`` and ``copy.deepcopy`` do what they do for
    any module; a weight that a kernel holds in a form of its own is given back as a copy. A state
    dict holds the scales and the plan too: see `octavo.model.state`.

    Attributes:
        plan: every decision with its reason.
        signature: names of the arguments.
        provenance: versions, target, number of calibration batches.
        runtime, options: what calls go to, and how it runs; see `lower`.
        samples: inputs, a tensor for each of the graph's, on which lowering compares a runtime with
            the oracle. Without any they are drawn from the ranges that calibration has seen.
        check: whether lowering does so.
        place: the module of a larger model that this one stands in for; ``None`` for a whole model.
        tunings: kind of CPU -> how it runs fastest there, see `tune`.
        variant: that of them by which it runs; ``None`` where it runs as the runtime has it.

    Example:
        >>> q(images).shape, q.runtime, q.target
        (torch.Size([64, 10]), 'torch', 'x86')
        >>> str(q.state_dict()["conv1.weight"].dtype)
        'torch.int8'
    """

    plan: Plan
    signature: Signature
    provenance: dict[str, Any]
    runtime: str
    options: Options
    samples: tuple[Tensor, ...] | None
    check: bool
    place: Place | None
    tunings: dict[str, Tuning]
    variant: Variant | None

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        signature: Signature,
        provenance: Mapping[str, Any],
        runtime: str | None = None,
        options: Options | None = None,
        samples: Sequence[Tensor] | None = None,
        check: bool = True,
        place: Place | None = None,
        tunings: Tunings | None = None,
        variant: Variant | None = None,
    ) -> None:
        expect(GRAPH, graph=graph)
        expect(PLAN, plan=plan)
        super().__init__()
        self.plan = plan
        self.signature = signature
        self.provenance = dict(provenance)
        self.runtime = runtime or default_runtime(graph.device)
        self.options = options or Options()
        self.samples = None if samples is None else tuple(samples)
        self.check = check
        self.place = place
        self.tunings = dict(tunings or {})
        self.variant = variant
        self._names = tuple(graph.constants)
        self._structure = replace(graph, constants={})
        self._calls = PlainCalls(self._structure)
        self._watched = Watched.of(graph)
        self._is_small = is_small(graph)
        for name, tensor in graph.constants.items():
            buffers, leaf = self._place_of(name)
            buffers[leaf] = tensor
        self._lowered: Lowered | None = None
        self._config: Any = None
        self.eval()

    @property
    def graph(self) -> Graph:
        """The canonical QDQ graph, with the tensors as they are now."""
        places = {name: self._place_of(name) for name in self._names}
        constants = {name: buffers[leaf] for name, (buffers, leaf) in places.items()}
        return replace(self._structure, constants=constants)

    def _place_of(self, name: str) -> tuple[dict[str, Any], str]:
        """The buffers of the submodule that holds a tensor, which is made if missing.

        Not by attribute: the float model may have a layer called "plan" or "target".
        """
        *path, leaf = name.split(".")
        owner: nn.Module = self
        for part in path:
            owner = owner._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
        return owner._buffers, leaf

    @property
    def pixels(self) -> Pixels | None:
        """What makes floats of its images; ``None`` where it takes floats."""
        return Pixels.from_dict(self.provenance.get("pixels"))

    @property
    def target(self) -> str:
        """Name of the target that the plan was made for."""
        return self.plan.target

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next((buffer.device for buffer in self.buffers()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Of the floats that go in, or come out where none go in."""
        names = (*self._structure.input_names(), *self._structure.output_names())
        dtypes = (
            getattr(torch, meta.dtype) for meta in map(self._structure.metas.get, names) if meta
        )
        return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)

    @property
    def config(self) -> Any:
        """The configuration of a model of transformers, of its class there if that is installed.

        Raises:
            AttributeError: the float model is no such model.
        """
        if self._config is None:
            self._config = configuration(self.signature)
        return self._config

    @property
    def main_input_name(self) -> str:
        """Of a model of transformers, by which it counts its samples.

        Raises:
            AttributeError: the float model is no such model.
        """
        if self.signature.main_input is None:
            raise AttributeError("the float model is not of transformers")
        return self.signature.main_input

    @property
    def lowered(self) -> Lowered:
        """The graph made ready for the runtime: weights packed, kernels chosen, and compared with
        the oracle.

        Raises:
            RuntimeUnavailable: the runtime cannot run this model here.
            RuntimeDisagrees: it computes something else than the oracle.
        """
        lowered = self._lowered
        if lowered is None:
            with _LOWERING:
                lowered = self._lowered = self._lowered or self._lower()
        return lowered

    def _lower(self) -> Lowered:
        options = replace(self.options, precision=self.precision)
        how = (self.device, options, self.check_inputs())
        try:
            if self.variant is None:
                fresh = lower(self.graph, self.runtime, *how)
            else:
                fresh = lower_variant(self.graph, self.variant, *how)
        except AttributeError as error:  # which nn.Module would tell as one of this property
            raise RuntimeError(f"lowering to {self.runtime} failed: {error!r}") from error
        lowered = as_planned(fresh, self.plan)
        if self.variant is None:
            warn_of(lowered, self.plan)
        elif self.tuning is not None:
            lowered = with_words(lowered, self.tuning)
        let_go(self, lowered.prepacked)
        return lowered

    @property
    def tuning(self) -> Tuning | None:
        """What tuning found on this kind of CPU, a table of what was tried; ``None`` before."""
        return self.tunings.get(cpu.kind())

    @property
    def precision(self) -> str | None:
        """Of what stays float: what was asked for, else the plan's; see `lower`.

        ``None`` is float32 but for the layers that rules put in bfloat16.
        """
        of_plan = None if self.plan.precision == "float32" else self.plan.precision
        return self.options.precision or of_plan

    def check_inputs(self, options: Options | None = None) -> list[tuple[Tensor, ...]]:
        """Batches on which lowering compares results with the oracle; none if it shall not.

        Args:
            options: how it is lowered; ``None`` is the model's own.
        """
        if not self.check:
            return []
        batch = (options or self.options).batch
        return inputs_to_check(self._structure, self.samples, batch, self._is_small)

    @Signed
    def forward(self, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        """What the float model returns, computed in int8.

        Samples with NaN or an infinity in them are computed without rounding: they get what the
        float model returns, NaN mostly, and other samples what they get without them.

        Args:
            args, kwargs: as the float model was called.
            labels: where the float model makes a loss of them that Octavo knows (see
                `octavo.graph.losses`), the result begins with that loss, of the quantized results.
                So are others, ``start_positions`` and ``end_positions`` for one.

        Raises:
            InputError: the arguments differ in name, structure, shape or dtype from the captured,
                or NaN or an infinity in them makes a result of integers meaningless.
            RuntimeUnavailable: the runtime stops on what the oracle can run.
            RuntimeDisagrees: it compiles the model for other sizes than before, and then computes
                something else than the oracle.
            ExportError: ``torch.jit.trace``, ``torch.export`` or ``torch.onnx.export`` records it.
        """
        if labels is not None:
            kwargs["labels"] = labels
        name = "a QuantizedModel" if self.place is None else f"the region {self.place}"
        tell_where_gradients_end(self, name, (*args, *kwargs.values()))
        return call_whole(self._call, args, kwargs)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.keys() <= self._structure.arguments.keys():
            return build_output(self._structure, self._results(args, kwargs))
        asked = Asked.of(kwargs, self.signature, self._structure)
        outputs = filled_output(self._structure, self._results(args, asked.kwargs))
        return with_objects(asked.answered(outputs, self.signature))

    @property
    def arguments(self) -> inspect.Signature:
        """What the float model's ``forward`` takes, which ``inspect.signature(q.forward)`` is."""
        return arguments_of(self.signature, self._structure.arguments)

    def _results(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        try:
            tensors = self._calls.flatten(args, kwargs)
        except InputError as error:
            raise error if self.place is None else self.place.refusal(error) from None
        run = self.lowered.run
        # Threads that look at the inputs would still be waiting for more to do when those of
        # another library begin.
        foreign = has_own_threads(self.lowered.runtime)
        try:
            if foreign and self._watched.are_fine(tensors, threads=1):
                return run(*tensors)
            with torch.inference_mode():  # less work for each operator than under no_grad
                if not foreign and self._watched.are_fine(tensors):
                    results = run(*tensors)
                else:
                    results = run_around(self.graph, self._watched, run, tensors)
        except RuntimeDisagrees:
            raise
        except (RuntimeUnavailable, RuntimeError, ValueError, IndexError) as error:
            raise self._blamed(error, tensors) from error
        # Kernels leave images with their channels last, and gaps behind rows, which a view of the
        # result may not cross: the float model does so with images that came so.
        came_so = any(t.dim() > 3 and not t.is_contiguous() for t in tensors)
        order = torch.preserve_format if came_so else torch.contiguous_format
        return tuple(_usable_outside(result, order) for result in results)

    def _blamed(self, error: Exception, tensors: Sequence[Tensor]) -> OctavoError:
        """What stops a call: its inputs, if they stop the oracle as well, else the runtime."""
        try:
            with torch.inference_mode():
                run_of(self.graph, self.device)(*tensors)
        except (RuntimeError, ValueError, IndexError):
            return InputError(f"the model cannot run on these inputs: {first_line(error)}")
        shapes = ", ".join(str(TensorMeta.of(tensor)) for tensor in tensors)
        return RuntimeUnavailable(
            f"the {self.runtime} runtime cannot run inputs that the model takes ({shapes}): "
            f'{first_line(error)}. Another runtime may, and the oracle does: lower("reference")'
        )

    def lower(
        self,
        runtime: str,
        *,
        threads: int | None = None,
        batch: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        precision: str | None = None,
        check: bool = True,
        tune: bool = False,
        budget: float | None = BUDGET_S,
        data: Iterable[Any] | None = None,
    ) -> QuantizedModel:
        """The same model on another runtime, which has to agree with the oracle.

        Args:
            runtime: ``"torch"`` (the int8 kernels of PyTorch), ``"onnxruntime"``, ``"openvino"``,
                ``"fastest"`` (the quickest of these here: as it was tuned for this kind of CPU,
                else they are timed), or ``"reference"`` (the oracle).
            threads: of a call; ``None`` is torch's own number. For ``onnxruntime`` and
                ``openvino``, as are the others.
            batch: the only batch size that it will be called with; ``None`` for any.
            cache: folder for what the runtime compiles, which makes the next load quicker
                (``openvino``).
            precision: of what stays float, ``"float32"``, ``"bfloat16"``, or ``"auto"``, which is
                bfloat16 where this CPU has instructions for it; ``None`` is the plan's.
            check: compare the runtime's results with the oracle's, on samples of the calibration
                data or inputs drawn from the ranges that it had.
            tune: try what the plan leaves open, and run the fastest; see `tune`, which remembers
                it.
            budget, data: see `tune`.

        Raises:
            InputError: there is nothing to tune in the oracle, or see `tune`.
            RuntimeUnavailable: there is no such runtime, or it cannot run here.
            RuntimeDisagrees: it computes something else than the oracle, by more than rounding
                explains; the message names the layer.
            MissingExtra: its package is not installed.
            ExportError: it cannot express an operator of the model.
        """
        expect(TEXT, runtime=runtime)
        optional(COUNT, threads=threads, batch=batch)
        optional(PATH, cache=cache)
        options = Options(threads, batch, None if cache is None else Path(cache), precision)
        if tune:
            if runtime == ORACLE or not check:
                raise InputError(
                    "tune=True is for runtimes that are compared with the oracle: name another "
                    f"than {ORACLE!r}, and leave check=False out"
                )
            chosen = None if runtime == FASTEST else [runtime]
            for name in chosen or ():
                options.refuse(name, *runtime_of(name, FASTEST).options, "precision")
            self.tune(budget=budget, runtimes=chosen, data=data, options=options)
        elif data is not None:
            raise InputError("data is for tune=True, which holds what it tries to an error on it")
        name = FASTEST if tune else runtime
        return QuantizedModel.of(
            self.content(), name, options=options, check=check, place=self.place
        )

    def tune(
        self,
        *,
        budget: float | None = BUDGET_S,
        runtimes: Sequence[str] | None = None,
        batch: int | None = None,
        data: Iterable[Any] | None = None,
        options: Options | None = None,
        progress: bool = True,
    ) -> Tuning:
        """Find out how the model runs fastest on this CPU, and remember it in `tunings`.

        What its plan leaves open is tried by measurement: layers in int8, bfloat16 or float,
        runtimes and threads, programs for the sizes at hand, and more (`octavo.runtimes.tuning`).
        What is kept agrees with the oracle, and is at least as precise as the plan: no farther from
        the float model than it, but for one decibel. ``lower("fastest")`` runs it then, and a file
        keeps it for `octavo.load` on the same kind of CPU.

        Whoever interrupts it can go on: what was tried is not tried again, until it is finished.

        Args:
            budget: seconds; ``None`` is as many as it takes to try all.
            runtimes: those that are tried; ``None`` is all that ``"fastest"`` tries.
            batch: the size of the batch that is timed; ``None`` is the example's. The model takes
                others as before.
            data: batches of the model's data, of which the first eight are used, on which the error
                is measured too.
            options: what holds for all that is tried; ``None`` is the model's own.
            progress: a bar in terminals and notebooks, lines in logs.

        Raises:
            InputError: the budget is not above 0, or data or batch do not fit the model.
            RuntimeUnavailable: there is no such runtime, or none can run here.

        Example:
            >>> found = q.tune(budget=5)
            >>> q.save("tuned.octavo")
        """
        asked = options or self.options
        steps = trials(
            self.graph,
            self.signature,
            self.tunings,
            self.device,
            replace(asked, precision=asked.precision or self.precision),
            self.check_inputs(asked),
            budget=budget,
            runtimes=runtimes,
            batch=batch,
            data=data,
        )
        for tuning in track(steps, "tuning", progress):
            self.tunings[tuning.kind] = tuning
        return self.tunings[cpu.kind()]

    def save(self, path: str | os.PathLike[str], *, samples: bool = False) -> None:
        """Write the artifact: one file, whole or not at all.

        Args:
            path: of the file.
            samples: let the file hold `samples`, some of your calibration data, so that whoever
                lowers it compares on these, and not on inputs drawn from the data's ranges.

        Raises:
            ArtifactError: the folder cannot be written to, or there are no samples.
        """
        if samples and self.samples is None:
            raise ArtifactError(
                "the model has no samples to write: octavo.quantize keeps two of its example, "
                "octavo.load those that the file has"
            )
        content = self.content()
        artifact.save(content if samples else replace(content, samples=None), path)

    def summary(self) -> Summary:
        """What runs in int8, what does not, and why. Prints as a table."""
        return summarize(self.graph, self.plan, self.lowered, self.provenance)

    def _repr_html_(self) -> str:
        """In a notebook: the summary."""
        return self.summary()._repr_html_()

    def __prepare_scriptable__(self) -> None:
        refuse_scripting()

    def extra_repr(self) -> str:
        return f"target={self.target!r}, runtime={self.runtime!r}"

    def content(self) -> artifact.Artifact:
        """What a file holds of it."""
        parts = (self.graph, self.plan, self.signature, self.provenance)
        return artifact.Artifact(*parts, self.samples, self.tunings)

    @classmethod
    def of(
        cls,
        content: artifact.Artifact,
        runtime: str | None = None,
        *,
        options: Options | None = None,
        check: bool = True,
        place: Place | None = None,
    ) -> QuantizedModel:
        """The model that a file holds, made ready: as it was tuned for this kind of CPU, where it
        was and no runtime is asked for, or the fastest; with a warning where it cannot run so.

        Args:
            content: of the file.
            runtime, options, check, place: see the attributes.

        Raises:
            OctavoError: as `lower`.
        """

        def made(runtime: str | None, variant: Variant | None) -> QuantizedModel:
            model = cls(
                content.graph,
                content.plan,
                content.signature,
                content.provenance,
                runtime,
                options,
                content.samples,
                check,
                place,
                content.tunings,
                variant,
            )
            _ = model.lowered
            return model

        tuning = here(content.tunings) if runtime in (None, FASTEST) else None
        if tuning is not None:
            try:
                return made(tuning.best.runtime, tuning.best)
            except OctavoError as error:
                warn_unusable(tuning, error)
        return made(runtime, None)

    def get_extra_state(self) -> Tensor:
        """What a state dict holds besides the tensors: scales, zero points, plan (JSON, uint8)."""
        return extra_state(self.content())

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing is left to do: `load_state_dict` sees it together with the tensors."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Become the saved model, or refuse before anything is changed.

        Raises:
            ArtifactError: it is not the whole state of a model of this form.
        """
        if any(key.startswith(prefix) for key in state_dict):
            graph = self.graph
            content = restored(state_dict, prefix, graph.constants)
            structure = replace(content.graph, constants={})
            self.__dict__.update(  # not by attribute: a layer may be called "plan"
                plan=content.plan,
                signature=content.signature,
                provenance=dict(content.provenance),
                _structure=structure,
                _calls=PlainCalls(structure),
                _watched=Watched.of(content.graph),
                samples=None,  # those were of another calibration
                tunings={},
                variant=None,
                _lowered=None,
                _config=None,
            )
            for name, tensor in graph.constants.items():
                buffers, leaf = self._place_of(name)
                buffers[leaf] = torch.empty_like(tensor)  # others may share the old one
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedModel:
        dtypes = {torch.float32, *(buffer.dtype for buffer in self.buffers())}
        if any(fn(torch.empty(0, dtype=dtype)).dtype != dtype for dtype in dtypes):
            raise OctavoError(
                "a quantized model cannot change its dtype: its scales are float32; "
                "to keep some layers in another dtype, quantize the float model accordingly"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._lowered = None
        return self

    def __getattr__(self, name: str) -> Any:
        """Plain attributes of the module that it stands in for, too."""
        place: Place | None = self.__dict__.get("place")
        if place is not None and name in place.attributes:
            return place.attributes[name]
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name == "generate" and self.signature.config is not None:
                raise AttributeError(_NO_GENERATE) from None
            raise error if place is None else AttributeError(place.lacks(name)) from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lowered": None}


_NO_GENERATE = (
    "the model was captured as one graph, which has no 'generate': quantize it with "
    'scope="modules" or scope="regions", and it stays of its own class'
)


def _usable_outside(result: Any, order: torch.memory_format) -> Any:
    """A result in that order. Autograd refuses tensors of inference mode, which a head on top of
    the model may need.
    """
    if not isinstance(result, Tensor):
        return result
    if result.is_inference() and not torch.is_inference_mode_enabled():  # no caller's own either
        return result.clone(memory_format=order)
    return result if order is torch.preserve_format else _contiguous(result)


def _contiguous(result: Tensor) -> Tensor:
    """What ``contiguous`` gives, by one thread: torch copies more than 32,768 values with its own
    threads, which spin on behind that and take a CPU from Octavo's worker.
    """
    is_plain = type(result) is Tensor and result.device.type == "cpu" and not result.requires_grad
    if result.is_contiguous() or not is_plain or result.dtype is torch.bfloat16:
        return result.contiguous()
    return torch.from_numpy(np.ascontiguousarray(result.numpy()))
