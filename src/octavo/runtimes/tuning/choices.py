"""What a plan leaves open, as data: each choice with its values, and what it must not break."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from octavo.graph.graph import Graph
from octavo.numerics.native import library
from octavo.quantization.bfloat16 import float_layers
from octavo.quantization.float_graph import with_floats
from octavo.runtimes.runtime import RUNTIMES
from octavo.runtimes.tuning.layers import LayerGroup, all_layers, kinds_of_layers, like_layers
from octavo.runtimes.tuning.variant import Shapes, Variant


@dataclass(frozen=True)
class Space:
    """What may be chosen from for one graph on one CPU.

    Attributes:
        graph: as planned.
        runtimes: those that are tried.
        sizes: the shapes that are timed; ``None`` where the model has no others.
        threads: of torch, or what was asked for.
        fixed_threads: whether these were asked for.
        bfloat16: whether the CPU has instructions for it, and no precision was asked for.
    """

    graph: Graph
    runtimes: tuple[str, ...]
    sizes: Shapes | None = None
    threads: int = 1
    fixed_threads: bool = False
    bfloat16: bool = False

    def fitted(self, variant: Variant) -> Variant:
        """The variant without what its runtime does not have."""
        known = RUNTIMES[variant.runtime]
        has = known.options
        narrow = variant.in_bfloat16
        if not self._narrows(variant):
            narrow = frozenset()
        return replace(
            variant,
            sizes=variant.sizes if "batch" in has else None,
            threads=variant.threads if "threads" in has else None,
            in_float=variant.in_float | (variant.in_bfloat16 - narrow),
            in_bfloat16=narrow,
            joined=variant.joined or "joined" not in has,
            channels_last=variant.channels_last and "channels_last" in has,
            programs=variant.programs or "programs" not in has,
        )

    def _narrows(self, variant: Variant) -> bool:
        """Whether the runtime can have these layers in bfloat16, and no others."""
        known = RUNTIMES[variant.runtime]
        if not (self.bfloat16 and known.bfloat16 and variant.in_bfloat16):
            return False
        if known.islands:
            return True
        floats = float_layers(with_floats(self.graph, variant.in_float | variant.in_bfloat16))
        return floats <= variant.in_bfloat16


Values = Iterator[tuple[str, Variant]]


@dataclass(frozen=True)
class Choice:
    """One thing that can be had in several ways.

    Attributes:
        name: what it is.
        changes: what is another then: the graph that is run, or the runtime's options.
        keeps: what stays as it is.
        values: from what may be chosen from and the fastest variant so far to variants that differ
            in this, with what each is called. Some may be the same as others.
        option: only runtimes that have it differ in this; ``""`` for all.
    """

    name: str
    changes: str
    keeps: str
    values: Callable[[Space, Variant], Values]
    option: str = ""


def _runtimes(space: Space, best: Variant) -> Values:
    for name in space.runtimes:
        yield name, replace(best, runtime=name, sizes=None)
        if space.sizes is not None:
            yield f"{name}, known sizes", replace(best, runtime=name, sizes=space.sizes)


def _all_in_float(space: Space, best: Variant) -> Values:
    for name in space.runtimes:
        for called, variant in _moved(all_layers(space.graph), space, best):
            yield f"{called} on {name}", replace(variant, runtime=name)


def _moved(group: LayerGroup, space: Space, best: Variant) -> Values:
    """The layers of a group in int8, in float and in bfloat16."""
    in_float, narrow = best.in_float - group.layers, best.in_bfloat16 - group.layers
    yield "int8", replace(best, in_float=in_float, in_bfloat16=narrow)
    yield "float", replace(best, in_float=in_float | group.layers, in_bfloat16=narrow)
    if space.bfloat16 and group.narrow:
        rest = group.layers - group.narrow
        yield (
            "bfloat16",
            replace(best, in_float=in_float | rest, in_bfloat16=narrow | group.narrow),
        )


def _joined(space: Space, best: Variant) -> Values:
    read = Counter(node.args[0] for node in space.graph.nodes if node.short_op == "linear")
    if any(count > 1 for count in read.values()):
        yield "apart", replace(best, joined=False)
        yield "joined", replace(best, joined=True)


def _layout(space: Space, best: Variant) -> Values:
    if any(len(entry.meta.shape) == 4 for entry in space.graph.inputs):
        yield "channels last", replace(best, channels_last=True)
        yield "as given", replace(best, channels_last=False)


def _programs(space: Space, best: Variant) -> Values:
    if not library.obstacle():
        yield "torch's", replace(best, programs=False)
        yield "native programs", replace(best, programs=True)


def _threads(space: Space, best: Variant) -> Values:
    if not space.fixed_threads:
        for count in sorted({1, space.threads // 2} - {0, space.threads}):
            yield f"{count}", replace(best, threads=count)
        yield f"{space.threads}", replace(best, threads=None)


_LAYERS = {
    "changes": "the graph: it reads and makes values that are not rounded",
    "keeps": "no value has more roundings behind it than planned; what the plan has in float stays",
}

# In the order in which they are tried.
RUNTIME = Choice(
    "runtime and sizes",
    "what runs the graph, and whether it has a program of its own for the sizes that are timed",
    "calls of other sizes run as well",
    _runtimes,
)
IN_FLOAT = Choice("all layers", values=_all_in_float, **_LAYERS)
JOINED = Choice(
    "linear layers that read the same",
    "the option joined: whether they are one product",
    "each layer has its own scales and its own result",
    _joined,
    "joined",
)
LAYOUT = Choice(
    "order of images",
    "the option channels_last: how images lie in memory",
    "the values; images that come out may lie in that order too",
    _layout,
    "channels_last",
)
PROGRAMS = Choice(
    "kernels",
    "the option programs: Octavo's own kernels, several layers a call, or torch's one by one",
    "what they compute, within a step",
    _programs,
    "programs",
)
THREADS = Choice(
    "threads",
    "the option threads: fewer than all",
    "the number that was asked for, if one was",
    _threads,
    "threads",
)


def choices(space: Space) -> tuple[Choice, ...]:
    """All choices for a graph, coarse ones first."""
    kinds = map(_of_layers, kinds_of_layers(space.graph))
    alike = map(_of_layers, like_layers(space.graph))
    return (RUNTIME, IN_FLOAT, PROGRAMS, *kinds, JOINED, LAYOUT, THREADS, *alike)


def _of_layers(group: LayerGroup) -> Choice:
    return Choice(group.name, values=partial(_moved, group), **_LAYERS)


def variants(choice: Choice, space: Space, best: Variant) -> dict[Variant, str]:
    """What a choice may come to now, each as its runtime can have it; without what it is."""
    found: dict[Variant, str] = {}
    if choice.option and choice.option not in RUNTIMES[best.runtime].options:
        return found
    for called, variant in choice.values(space, best):
        fitted = space.fitted(variant)
        if fitted != best:
            found.setdefault(fitted, called)
    return found
