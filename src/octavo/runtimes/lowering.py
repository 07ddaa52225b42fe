"""Lowering to one runtime, which proves itself on samples.

Tested in tests/runtimes/test_agreement.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from octavo.errors import InputError, OctavoError, RuntimeDisagrees, RuntimeUnavailable
from octavo.graph.calls import first_samples
from octavo.graph.graph import Graph
from octavo.quantization.bfloat16 import SUFFIX, in_float32, in_precision
from octavo.runtimes import cpu
from octavo.runtimes.agreement import agreement, farthest_layer
from octavo.runtimes.lowered import Lowered
from octavo.runtimes.options import Options
from octavo.runtimes.runtime import ORACLE, Runtime, check_device, runtime_of


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
    lowered, meant = lower_as_meant(graph, runtime, device, options)
    if not samples or runtime == ORACLE:
        return lowered
    where = partial(_where, meant, runtime, device, options)
    first = samples[:1] if runtime_of(runtime).sized else samples
    return proved(lowered, meant, first, options.batch, where)


def lower_as_meant(
    graph: Graph, runtime: str, device: torch.device, options: Options
) -> tuple[Lowered, Graph]:
    """Lower to one runtime; and the graph that it was asked to compute, in its precision.

    Raises:
        RuntimeUnavailable, MissingExtra, ExportError: see `octavo.runtimes.lower`.
    """
    known = runtime_of(runtime)
    options = _settled(options, runtime, known)
    if known.cpu_only:
        check_device(runtime, device)
    meant = known.meaning(_in_its_precision(graph, options.precision, known))
    lowered = replace(known.lower(meant, device, options), runtime=runtime)
    return _under_its_names(lowered, meant, options.precision), meant


def _settled(options: Options, runtime: str, known: Runtime) -> Options:
    """The options, with ``"auto"`` as the precision that it means here.

    Raises:
        RuntimeUnavailable: the runtime has no such option, or no bfloat16.
    """
    options.refuse(runtime, *known.options, "precision")
    if options.precision == "auto":
        narrow = known.bfloat16 and cpu.has_bf16()
        return replace(options, precision="bfloat16" if narrow else "float32")
    if options.precision == "bfloat16" and not known.bfloat16:
        raise RuntimeUnavailable(
            f'the {runtime} runtime has no bfloat16 kernels for the CPU: leave precision="bfloat16"'
            ' out, or say precision="auto", which is float32 there'
        )
    return options


def _in_its_precision(graph: Graph, precision: str | None, known: Runtime) -> Graph:
    """The graph that the runtime is asked to compute, and that it is judged by."""
    if precision is not None:
        return in_precision(graph, precision)
    return graph if known.islands else in_float32(graph)


def _under_its_names(lowered: Lowered, meant: Graph, precision: str | None) -> Lowered:
    """Layers in bfloat16 under the names that they have in the plan."""
    kernels = {name.removesuffix(SUFFIX): kernel for name, kernel in lowered.kernels.items()}
    fallbacks = {name.removesuffix(SUFFIX): why for name, why in lowered.fallbacks.items()}
    narrow = any(n.meta is not None and n.meta.dtype == "bfloat16" for n in meant.nodes)
    words = "float32, and bfloat16 where rules say so" if narrow else "float32"
    return replace(lowered, kernels=kernels, fallbacks=fallbacks, precision=precision or words)


def proved(
    lowered: Lowered,
    meant: Graph,
    samples: Sequence[Sequence[Tensor]],
    batch: int | None = None,
    where: Callable[[Sequence[Sequence[Tensor]]], str] = lambda batches: "",
) -> Lowered:
    """With how near it is to the oracle; programs that it compiles later are compared then.

    Args:
        lowered: what a runtime made of a graph.
        meant: that graph.
        samples: batches of inputs.
        batch: the only batch size that it takes; ``None`` for any.
        where: the layer to blame, of batches, as a clause.

    Raises:
        RuntimeDisagrees: it is farther off than rounding explains.
    """
    compared = _compared(lowered, meant, samples, where)
    if lowered.compiled_for is None:
        return compared
    return replace(compared, run=_ProvedBySizes(lowered, meant, samples, batch, where))


def _compared(
    lowered: Lowered,
    meant: Graph,
    samples: Sequence[Sequence[Tensor]],
    where: Callable[[Sequence[Sequence[Tensor]]], str],
) -> Lowered:
    """With how near it is to the oracle.

    Raises:
        RuntimeDisagrees: it is farther off than rounding explains; ``where`` tells the layer.
    """
    runtime = lowered.runtime
    try:
        near = agreement(meant, lowered, samples)
    except (InputError, RuntimeUnavailable, RuntimeError) as error:
        raise RuntimeDisagrees(f"{runtime} cannot run what the oracle can: {error}") from error
    if near is None:
        return replace(lowered, note=_joined(lowered.note, _NOT_COMPARED))
    if not near.agrees:
        raise RuntimeDisagrees(
            f"the {runtime} runtime computes something else than the model says here: its results "
            f'are {near.distance}{where(samples)}. Lower it to another runtime, or to "reference", '
            "which is the oracle; check=False takes it as it is"
        )
    return replace(lowered, agreement=near)


class _ProvedBySizes:
    """Calls of a model that is compiled for sizes as they come: each program is compared too, at
    its first call, on some samples where it takes batches of any size.

    Args:
        lowered: the model.
        meant: the graph that it was asked to compute.
        samples: batches that it was compared on.
        batch: the only batch size that it takes; ``None`` for any.
        where: the layer to blame, of batches.
    """

    def __init__(
        self,
        lowered: Lowered,
        meant: Graph,
        samples: Sequence[Sequence[Tensor]],
        batch: int | None,
        where: Callable[[Sequence[Sequence[Tensor]]], str],
    ) -> None:
        assert lowered.compiled_for is not None
        self.lowered, self.meant, self.batch, self.where = lowered, meant, batch, where
        self.sizes_of = lowered.compiled_for
        self.proved = set(map(self.sizes_of, samples))

    def __call__(self, *tensors: Tensor) -> tuple[Any, ...]:
        """What the model gives.

        Raises:
            RuntimeDisagrees: it computes something else at these sizes.
        """
        sizes = self.sizes_of(tensors)
        if sizes not in self.proved and all(tensor.numel() for tensor in tensors):
            _compared(self.lowered, self.meant, [self._sample(tensors, sizes)], self.where)
            self.proved.add(sizes)
        return self.lowered.run(*tensors)

    def _sample(self, tensors: Sequence[Tensor], sizes: tuple[int, ...]) -> Sequence[Tensor]:
        """What the program for these sizes is compared on."""
        if self.batch is not None:
            return tensors
        entries = zip(self.meant.inputs, tensors, strict=True)
        few = [first_samples(entry, tensor, _FEW) for entry, tensor in entries]
        return few if self.sizes_of(few) == sizes else tensors  # fewer run another program


_FEW = 2
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
