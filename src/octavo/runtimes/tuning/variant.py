"""One way to run a quantized graph, as data; and the graph made ready for it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Graph, TensorMeta
from octavo.quantization.bfloat16 import float_layers, in_bfloat16
from octavo.quantization.float_graph import with_floats
from octavo.runtimes.examples import random_inputs
from octavo.runtimes.lowered import Lowered
from octavo.runtimes.lowering import lower_as_meant, lower_proved, proved
from octavo.runtimes.options import Options
from octavo.runtimes.runtime import runtime_of

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Variant:
    """One way to run a quantized graph. What it leaves out is as planned, and as the runtime has
    it; what it changes is more precise than the plan, never less.

    Attributes:
        runtime: its name.
        sizes: the shapes of the inputs that a program of its own is made for; calls of other sizes
            go to one for any, which is made at the first of them. ``None`` is one for all.
        threads: of a call; ``None`` is what was asked for, or torch's number.
        in_float: int8 layers that run in float.
        in_bfloat16: int8 layers that run in bfloat16.
        joined: whether linear layers that read the same integers are one product.
        channels_last: whether images are put in that order before anything reads them.
        programs: whether Octavo's own kernels run layers in native programs, where they can.

    Example:
        >>> print(Variant("torch", joined=False))
        torch, siblings apart
    """

    runtime: str
    sizes: Shapes | None = None
    threads: int | None = None
    in_float: frozenset[str] = frozenset()
    in_bfloat16: frozenset[str] = frozenset()
    joined: bool = True
    channels_last: bool = False
    programs: bool = True

    @property
    def plain(self) -> bool:
        """Whether it is what lowering to the runtime gives without tuning."""
        return self == Variant(self.runtime)

    @property
    def key(self) -> str:
        """A short name that no other variant has."""
        return hashlib.sha256(json.dumps(self.to_dict()).encode()).hexdigest()[:16]

    def graph(self, graph: Graph) -> Graph:
        """The graph that it runs."""
        changed = with_floats(graph, self.in_float | self.in_bfloat16)
        if self.in_bfloat16 and runtime_of(self.runtime).islands:
            changed = in_bfloat16(changed, self.in_bfloat16 & float_layers(changed))
        return changed

    def options(self, asked: Options) -> Options:
        """How the runtime runs it; what was asked for stays, whatever tuning has found."""
        own = asked.only(*runtime_of(self.runtime).options, "precision")
        narrow = self.in_bfloat16 and not runtime_of(self.runtime).islands
        return replace(
            own,
            threads=own.threads or self.threads,
            precision=own.precision or ("bfloat16" if narrow else None),
            joined=None if self.joined else False,
            channels_last=self.channels_last or None,
            programs=None if self.programs else False,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "in_float": sorted(self.in_float),
            "in_bfloat16": sorted(self.in_bfloat16),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Variant:
        """What `to_dict` gave.

        Raises:
            ValueError, TypeError, KeyError: it is not that.
        """
        sizes, threads = data["sizes"], data["threads"]
        names = [*data["in_float"], *data["in_bfloat16"], data["runtime"]]
        shapes = None if sizes is None else tuple(tuple(shape) for shape in sizes)
        numbers = [size for shape in shapes or () for size in shape]
        numbers += [] if threads is None else [threads]
        switches = [data["joined"], data["channels_last"], data["programs"]]
        if not (
            all(isinstance(name, str) for name in names)
            and all(type(number) is int and number >= 0 for number in numbers)
            and all(isinstance(switch, bool) for switch in switches)
        ):
            raise TypeError(f"{data} is no variant")
        layers = (frozenset(data["in_float"]), frozenset(data["in_bfloat16"]))
        return cls(data["runtime"], shapes, threads, *layers, *switches)

    def __str__(self) -> str:
        parts = [
            self.runtime,
            *(["known sizes"] if self.sizes is not None else []),
            *([f"threads={self.threads}"] if self.threads else []),
            *([f"{_count(self.in_float)} in float"] if self.in_float else []),
            *([f"{_count(self.in_bfloat16)} in bfloat16"] if self.in_bfloat16 else []),
            *([] if self.joined else ["siblings apart"]),
            *(["channels last"] if self.channels_last else []),
            *([] if self.programs else ["no native programs"]),
        ]
        return ", ".join(parts)


def _count(names: frozenset[str]) -> str:
    return f"{len(names)} layer{'s' if len(names) > 1 else ''}"


@dataclass(frozen=True)
class Ready:
    """A variant that was lowered.

    Attributes:
        lowered: what the runtime made of its graph.
        meant: that graph.
        batch: the only batch size that it takes; ``None`` for any.
    """

    lowered: Lowered
    meant: Graph
    batch: int | None = None

    def proved(self, samples: Sequence[Sequence[Tensor]]) -> Lowered:
        """With how near it is to the oracle of its graph: on those of the samples that its own
        program takes, or on random inputs if that takes none of them.

        Raises:
            RuntimeDisagrees: it is farther off than rounding explains.
        """
        own = self.lowered.run
        if isinstance(own, _BySizes):
            samples = [batch for batch in samples if shapes_of(batch) == own.sizes]
        samples = samples or [random_inputs(self.meant, self.batch)]
        return proved(self.lowered, self.meant, samples, self.batch)


def prepare(
    graph: Graph,
    variant: Variant,
    device: torch.device,
    options: Options,
    samples: Sequence[Sequence[Tensor]],
) -> Ready:
    """Lower to a variant; nothing is compared yet.

    Args:
        graph, variant, device, options: as for `lower_variant`.
        samples: on which the program for any size proves itself, when it is made.

    Raises:
        OctavoError: see `octavo.runtimes.lower`.
    """
    own, changed = variant.options(options), variant.graph(graph)
    if variant.sizes is None:
        return Ready(*lower_as_meant(changed, variant.runtime, device, own), own.batch)

    def for_any_size() -> Lowered:
        return lower_proved(changed, variant.runtime, device, own, samples)

    closed = _with_sizes(changed, variant.sizes)
    lowered, meant = lower_as_meant(closed, variant.runtime, device, replace(own, batch=None))
    run = _BySizes(lowered.run, variant.sizes, for_any_size)
    return Ready(replace(lowered, run=run, compiled_for=None), meant)


def lower_variant(
    graph: Graph,
    variant: Variant,
    device: torch.device,
    options: Options,
    samples: Sequence[Sequence[Tensor]],
) -> Lowered:
    """Make a quantized graph ready for one variant.

    Args:
        graph: in canonical QDQ form.
        variant: how it is run.
        device: where the graph's tensors are.
        options: what was asked for.
        samples: batches of inputs on which it has to agree with the oracle of what it runs; without
            any nothing is compared.

    Raises:
        OctavoError: see `octavo.runtimes.lower`.
    """
    ready = prepare(graph, variant, device, options, samples)
    return ready.proved(samples) if samples else ready.lowered


def _with_sizes(graph: Graph, sizes: Shapes) -> Graph:
    """The graph for inputs of these shapes alone."""
    inputs = (
        replace(
            entry,
            meta=TensorMeta(shape, entry.meta.dtype),
            example=shape,
            axes=("",) * len(shape),
        )
        for entry, shape in zip(graph.inputs, sizes, strict=True)
    )
    return replace(graph, inputs=tuple(inputs))


def shapes_of(tensors: Sequence[Tensor]) -> Shapes:
    """The shapes of a call's tensors."""
    return tuple(tuple(tensor.shape) for tensor in tensors)


class _BySizes:
    """A program for known sizes, and one for any, which is made when other sizes come."""

    def __init__(
        self, known: Callable[..., Any], sizes: Shapes, for_any: Callable[[], Lowered]
    ) -> None:
        self.known, self.sizes, self.for_any = known, sizes, for_any
        self.any: Callable[..., Any] | None = None
        self.making = threading.Lock()

    def __call__(self, *tensors: Tensor) -> Any:
        if shapes_of(tensors) == self.sizes:
            return self.known(*tensors)
        if self.any is None:
            with self.making:
                self.any = self.any or self.for_any().run
        return self.any(*tensors)
