"""`QuantizedModel`: a quantized graph with its plan, as an ``nn.Module`` that runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo import artifact
from octavo.batches import Signature
from octavo.call import build_output, flatten_call
from octavo.errors import ArtifactError, InputError, OctavoError, RuntimeUnavailable
from octavo.graph import Graph
from octavo.model_state import extra_state, restored
from octavo.plan import Plan
from octavo.runtimes import Lowered, Options, default_runtime, lower
from octavo.screening import Watched, run_around
from octavo.summary import Summary, summarize


class OctavoWarning(UserWarning):
    """Something works, but not as fast as it could."""


class QuantizedModel(nn.Module):
    """A quantized model: call it as the float model was called.

    It is made by `octavo.quantize`, `octavo.convert` and `octavo.load`. Its tensors are buffers
    under the float model's own names, so ``to(device)`` and ``copy.deepcopy`` do what they do for
    any module. A state dict holds the scales and the plan too: see `octavo.model_state`.

    Attributes:
        plan: every decision with its reason.
        signature: names of the arguments.
        provenance: versions, target, number of calibration batches.
        runtime, options: what calls go to, and how it runs; see `lower`.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        signature: Signature,
        provenance: Mapping[str, Any],
        runtime: str | None = None,
        options: Options | None = None,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.signature = signature
        self.provenance = dict(provenance)
        self.runtime = runtime or default_runtime(graph.device)
        self.options = options or Options()
        self._names = tuple(graph.constants)
        self._structure = replace(graph, constants={})
        self._watched = Watched.of(graph)
        for name, tensor in graph.constants.items():
            buffers, leaf = self._place_of(name)
            buffers[leaf] = tensor
        self._lowered: Lowered | None = None
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
    def target(self) -> str:
        """Name of the target that the plan was made for."""
        return self.plan.target

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next((buffer.device for buffer in self.buffers()), torch.device("cpu"))

    @property
    def lowered(self) -> Lowered:
        """The graph made ready for the runtime: weights packed, kernels chosen.

        Raises:
            RuntimeUnavailable: the runtime cannot run this model here.
        """
        if self._lowered is None:
            lowered = lower(self.graph, self.runtime, self.device, self.options)
            self._lowered = _as_planned(lowered, self.plan)
            _warn_of(self._lowered, self.plan)
        return self._lowered

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the float model returns, computed in int8.

        Samples with NaN or an infinity in them are computed without rounding: they get what the
        float model returns, NaN mostly, and other samples what they get without them.

        Raises:
            InputError: the arguments differ in name, structure, shape or dtype from the captured,
                or NaN or an infinity in them makes a result of integers meaningless.
        """
        tensors = flatten_call(self._structure, args, kwargs)
        run = self.lowered.run
        try:
            with torch.inference_mode():  # less work for each operator than under no_grad
                if self._watched.are_fine(tensors):
                    results = run(*tensors)
                else:
                    results = run_around(self.graph, self._watched, run, tensors)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            first_line = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"the model cannot run on these inputs: {first_line}") from error
        return build_output(self._structure, tuple(map(_usable_in_training, results)))

    def lower(
        self,
        runtime: str,
        *,
        threads: int | None = None,
        batch: int | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> QuantizedModel:
        """The same model on another runtime.

        Args:
            runtime: ``"torch"`` (the int8 kernels of PyTorch), ``"onnxruntime"``, ``"openvino"``,
                ``"fastest"`` (the quickest of these here: they are timed), or ``"reference"``
                (the oracle).
            threads: of a call; ``None`` is torch's own number. For ``onnxruntime`` and
                ``openvino``, as are the others.
            batch: the only batch size that it will be called with; ``None`` for any.
            cache: folder for what the runtime compiles, which makes the next load quicker
                (``openvino``).

        Raises:
            RuntimeUnavailable: there is no such runtime, or it cannot run here.
            MissingExtra: its package is not installed.
            ExportError: it cannot express an operator of the model.
        """
        options = Options(threads, batch, None if cache is None else Path(cache))
        model = QuantizedModel(
            self.graph, self.plan, self.signature, self.provenance, runtime, options
        )
        _ = model.lowered
        return model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artifact: one file, whole or not at all.

        Raises:
            ArtifactError: the folder cannot be written to.
        """
        artifact.save(self._content(), path)

    def summary(self) -> Summary:
        """What runs in int8, what does not, and why. Prints as a table."""
        return summarize(self.graph, self.plan, self.lowered, self.provenance)

    def extra_repr(self) -> str:
        return f"target={self.target!r}, runtime={self.runtime!r}"

    def _content(self) -> artifact.Artifact:
        return artifact.Artifact(self.graph, self.plan, self.signature, self.provenance)

    def get_extra_state(self) -> Tensor:
        """What a state dict holds besides the tensors: scales, zero points, plan (JSON, uint8)."""
        return extra_state(self._content())

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
            self.__dict__.update(  # not by attribute: a layer may be called "plan"
                plan=content.plan,
                signature=content.signature,
                provenance=dict(content.provenance),
                _structure=replace(content.graph, constants={}),
                _watched=Watched.of(content.graph),
                _lowered=None,
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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lowered": None}


def load(path: str | os.PathLike[str], runtime: str = "torch") -> QuantizedModel:
    """Load an artifact; the float model's code is not needed, and no code in the file is run.

    Args:
        path: a ``.octavo`` file.
        runtime: as for `QuantizedModel.lower`.

    Raises:
        ArtifactError: the file is missing, damaged, hostile or of a newer version.
        RuntimeUnavailable: the runtime cannot run here.

    Example:
        >>> model = load("model.octavo")  # doctest: +SKIP
    """
    content = artifact.load(path)
    try:
        model = QuantizedModel(
            content.graph, content.plan, content.signature, content.provenance, runtime
        )
        _ = model.lowered
    except RuntimeUnavailable:
        raise
    except Exception as error:  # whatever an altered graph makes torch say
        first_line = next(iter(str(error).splitlines()), "")
        raise ArtifactError(
            f"{os.fspath(path)} holds a graph that cannot run: {first_line}"
        ) from error
    return model


def _usable_in_training(result: Any) -> Any:
    """Autograd refuses tensors of inference mode, which a head on top of the model may need."""
    return result.clone() if isinstance(result, Tensor) and result.is_inference() else result


def _as_planned(lowered: Lowered, plan: Plan) -> Lowered:
    """Without the fallbacks that are none: float operators behind int8 layers."""
    quantized = {name for name, t in plan.tensors.items() if t.on_integers}
    fallbacks = {name: why for name, why in lowered.fallbacks.items() if name in quantized}
    return replace(lowered, fallbacks=fallbacks)


# Where these run in float, something can be done about it; the summary names the others as well.
_WITH_KERNELS = frozenset({"conv1d", "conv2d", "conv3d", "linear"})


def _warn_of(lowered: Lowered, plan: Plan) -> None:
    unexpected = {
        name: why
        for name, why in lowered.fallbacks.items()
        if name in plan.tensors and plan.tensors[name].op in _WITH_KERNELS
    }
    if unexpected:
        layers, reasons = list(unexpected), sorted(set(unexpected.values()))
        warnings.warn(
            f"{len(layers)} quantized layers run in float on the {lowered.runtime} runtime "
            f"({', '.join(layers[:3])}{', ...' if len(layers) > 3 else ''}): {'; '.join(reasons)}",
            OctavoWarning,
            stacklevel=3,
        )
