"""The runtimes as data, and lowering to one of them, which proves itself on samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module

import torch
from torch import Tensor

from octavo.errors import InputError, OctavoError, RuntimeDisagrees, RuntimeUnavailable
from octavo.graph.graph import Graph
from octavo.quantization.bfloat16 import SUFFIX, in_float32, in_precision
from octavo.runtimes import cpu
from octavo.runtimes.agreement import agreement, farthest_layer
from octavo.runtimes.lowered import Lowered, Options


@dataclass(frozen=True)
class Runtime:
    """What is known of a runtime before its module is imported.

    Attributes:
        module: with a function ``lower(graph, device, options)``.
        options: those of `Options` that it has, besides the precision.
        bfloat16: whether it has kernels for it.
        islands: whether some layers may be in bfloat16 and others in float32.
        foreign: whether it is another library, with threads of its own.
    """

    module: str
    options: tuple[str, ...] = ()
    bfloat16: bool = True
    islands: bool = True
    foreign: bool = False


RUNTIMES: Mapping[str, Runtime] = {
    "reference": Runtime("octavo.runtimes.reference"),
    "torch": Runtime("octavo.runtimes.torch.int8"),
    "inductor": Runtime("octavo.runtimes.inductor", ("batch",)),
    "onnxruntime": Runtime(
        "octavo.runtimes.onnxruntime", ("threads", "batch"), False, False, foreign=True
    ),
    "openvino": Runtime(
        "octavo.runtimes.openvino", ("threads", "batch", "cache"), islands=False, foreign=True
    ),
}


def lower_proved(
    graph: Graph,
    runtime: str,
    device: torch.device,
    options: Options,
    samples: Sequence[Sequence[Tensor]],
) -> Lowered:
    """Lower to one runtime, and compare it with the oracle on samples, if there are any.

    Raises:
        RuntimeUnavailable, RuntimeDisagrees, MissingExtra, ExportError: see
            `octavo.runtimes.lower`.
    """
    made, meant = lower_as_meant(graph, runtime, device, options)
    if not samples or runtime == "reference":
        return made
    try:
        found = agreement(meant, made, samples)
    except InputError as error:  # of the runtime, on what the oracle can run
        raise RuntimeDisagrees(f"{runtime} cannot run what the oracle can: {error}") from error
    if found is None:
        return replace(made, note=_joined(made.note, _NOT_COMPARED))
    if not found.agrees:
        where = _where(meant, runtime, device, options, samples)
        raise RuntimeDisagrees(
            f"the {runtime} runtime computes something else than the model says here: its results "
            f"are {found.sqnr_db:.1f} dB from the oracle's, where rounding explains "
            f'{found.bound_db:.1f} dB{where}. Lower it to another runtime, or to "reference", '
            "which is the oracle; check=False takes it as it is"
        )
    return replace(made, agreement=found)


def lower_as_meant(
    graph: Graph, runtime: str, device: torch.device, options: Options
) -> tuple[Lowered, Graph]:
    """Lower to one runtime; and the graph that it was asked to compute, in its precision.

    Raises:
        RuntimeUnavailable, MissingExtra, ExportError: see `octavo.runtimes.lower`.
    """
    known = RUNTIMES.get(runtime)
    if known is None:
        names = ", ".join(map(repr, RUNTIMES))
        raise RuntimeUnavailable(f"there is no runtime {runtime!r}; choose one of {names}")
    options.refuse(runtime, *known.options, "precision")
    options = replace(options, precision=_resolved(options.precision, runtime))
    meant = _in_its_precision(graph, options.precision, known)
    made: Lowered = import_module(known.module).lower(meant, device, options)
    return _under_its_names(made, meant, options.precision), meant


def _under_its_names(made: Lowered, meant: Graph, precision: str | None) -> Lowered:
    """Layers in bfloat16 under the names that they have in the plan."""
    kernels = {name.removesuffix(SUFFIX): kernel for name, kernel in made.kernels.items()}
    fallbacks = {name.removesuffix(SUFFIX): why for name, why in made.fallbacks.items()}
    narrow = any(n.meta is not None and n.meta.dtype == "bfloat16" for n in meant.nodes)
    words = "float32, and bfloat16 where rules say so" if narrow else "float32"
    return replace(made, kernels=kernels, fallbacks=fallbacks, precision=precision or words)


def _resolved(precision: str | None, runtime: str) -> str | None:
    """``"auto"`` as what it means here.

    Raises:
        RuntimeUnavailable: the runtime has no bfloat16.
    """
    bfloat16 = RUNTIMES[runtime].bfloat16
    if precision == "auto":
        return "bfloat16" if bfloat16 and cpu.has_bf16() else "float32"
    if precision == "bfloat16" and not bfloat16:
        raise RuntimeUnavailable(
            f'the {runtime} runtime has no bfloat16 kernels for the CPU: leave precision="bfloat16"'
            ' out, or say precision="auto", which is float32 there'
        )
    return precision


def _in_its_precision(graph: Graph, precision: str | None, runtime: Runtime) -> Graph:
    """The graph that the runtime is asked to compute, and that it is judged by."""
    if precision is not None:
        return in_precision(graph, precision)
    return graph if runtime.islands else in_float32(graph)


_NOT_COMPARED = (
    "not compared with the oracle, which cannot run on inputs drawn from the ranges of the data"
)


def _where(
    graph: Graph,
    runtime: str,
    device: torch.device,
    options: Options,
    batches: Sequence[Sequence[Tensor]],
) -> str:
    """The layer to blame, as a clause; empty where the graph cannot be cut."""
    how = (runtime, device, options)
    try:
        farthest = partial(farthest_layer, graph, lambda cut: lower_as_meant(cut, *how)[0])
        layer, db = min(map(farthest, batches), key=lambda found: found[1])
    except (OctavoError, RuntimeError):
        return ""
    return f"; by itself the layer {layer!r} is farthest off, {db:.1f} dB"


def _joined(note: str, more: str) -> str:
    return f"{note}; {more}" if note else more
