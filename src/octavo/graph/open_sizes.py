"""Which sizes of a graph's inputs are open, and what they are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from octavo.arguments import Kind
from octavo.errors import InputError
from octavo.graph.graph import BATCH, BATCH_NAMES, Graph

# Input -> axis -> what the size is called.
OpenSizes = Mapping[str, Mapping[int, str]]


def _is_stated(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and isinstance(axes, Mapping)
        and all(
            type(axis) is int and axis >= 0 and isinstance(called, str) and called
            for axis, called in axes.items()
        )
        for name, axes in value.items()
    )


OPEN_SIZES = Kind(
    _is_stated,
    'give a name for each axis of an input that has to be open: {"input_ids": {1: "length"}}',
)

# Input and axis of sizes that are equal.
Sizes = frozenset[tuple[str, int]]


def tied(graph: Graph) -> list[Sizes]:
    """The open sizes, those together that a guard says are equal."""
    groups = {
        (entry.name, axis): frozenset({(entry.name, axis)})
        for entry in graph.inputs
        for axis, size in enumerate(entry.meta.shape)
        if size is None
    }
    for guard in graph.guards:
        kind, *sides = guard.condition
        if kind == "==" and all(isinstance(s, tuple) and s[0] == "size" for s in sides):
            one, other = (groups.get((side[1], side[2])) for side in sides)
            if one is not None and other is not None:
                groups |= dict.fromkeys(one | other, one | other)
    return list(dict.fromkeys(groups.values()))


def named(graph: Graph, stated: OpenSizes) -> Graph:
    """The graph whose open sizes have names: those stated, N for the batch, else one of their own.

    Raises:
        InputError: what is stated is not a size of the model's inputs.
    """
    check_stated(graph, stated)
    names: dict[tuple[str, int], str] = {}
    groups = tied(graph)
    for group in groups:
        given = [stated[name][axis] for name, axis in group if axis in stated.get(name, {})]
        name, axis = min(group, key=lambda size: _place(graph, size))
        names |= dict.fromkeys(group, given[0] if given else f"{name}_{axis}")
    if not set(names.values()) & set(BATCH_NAMES):
        stated_ones = {(name, axis) for name, axes in stated.items() for axis in axes}
        names |= dict.fromkeys(_batch(graph, [g for g in groups if not g & stated_ones]), BATCH)
    inputs = (
        entry.with_axes({axis: names[name, axis] for name, axis in names if name == entry.name})
        for entry in graph.inputs
    )
    return replace(graph, inputs=tuple(inputs))


def check_stated(graph: Graph, stated: OpenSizes) -> None:
    """Hold what a user states to the model's inputs.

    Raises:
        InputError: it is not about the model's inputs, or the model fixes one of the sizes.
    """
    inputs = {entry.name: entry for entry in graph.inputs}
    for name, axes in stated.items():
        if name not in inputs:
            raise InputError(f"open_sizes is about {name!r}; the model's inputs are {list(inputs)}")
        shape = inputs[name].meta.shape
        for axis, called in axes.items():
            if axis >= len(shape):
                raise InputError(
                    f"open_sizes has the axis {axis} of {name!r}, which is {inputs[name]}"
                )
            if shape[axis] is not None:
                why = _why_fixed(graph, name, axis)
                raise InputError(f"the size {called!r} of {name!r} cannot be open: {why}")


def _why_fixed(graph: Graph, name: str, axis: int) -> str:
    """What fixes a size, as a clause."""
    size = ("size", name, axis)
    entry = next(entry for entry in graph.inputs if entry.name == name)
    for guard in graph.guards:
        if guard.condition == ("==", size, entry.meta.shape[axis]):
            return f"{guard} is fixed: {guard.reason}"
    return f"the model was captured with {entry.meta.shape[axis]} in the axis {axis}"


def _batch(graph: Graph, groups: Sequence[Sizes]) -> Sizes:
    """The size that the most inputs have, in their first axes if there are several such.

    First axes that are equal in the example are taken for one, since no guard says so where a
    model repeats one input for each sample of another.
    """
    if not groups:
        return frozenset()
    examples = {entry.name: entry.sizes for entry in graph.inputs}
    first = [group for group in groups if any(axis == 0 for _, axis in group)]
    sizes = [next(examples[name][axis] for name, axis in group) for group in first]
    merged = [group for group, size in zip(first, sizes, strict=True) if size == sizes[0]]
    candidates = [frozenset().union(*merged), *groups] if merged else groups

    def likeness(group: Sizes) -> tuple[int, int, int]:
        place = min(_place(graph, size)[0] for size in group)
        return len({name for name, _ in group}), sum(axis == 0 for _, axis in group), -place

    return max(candidates, key=likeness)


def _place(graph: Graph, size: tuple[str, int]) -> tuple[int, int]:
    """Where a size stands among those of all inputs."""
    return graph.input_names().index(size[0]), size[1]


def batch_sizes(graph: Graph) -> Iterator[tuple[str, int]]:
    """Input and axis of the batch, wherever it is open."""
    for entry in graph.inputs:
        if entry.batch_axis is not None:
            yield entry.name, entry.batch_axis


def batch_name(graph: Graph) -> str:
    """What the size of the batch is called."""
    return next((e.axes[e.batch_axis] for e in graph.inputs if e.batch_axis is not None), BATCH)


def has_batch(graph: Graph, tensors: Sequence[Tensor], batch: int) -> bool:
    """Whether a call's batch, wherever it is open, is of this size."""
    return all(
        entry.batch_axis is None or tensor.shape[entry.batch_axis] == batch
        for entry, tensor in zip(graph.inputs, tensors, strict=True)
    )
