"""How many sizes a capture leaves open.

All that the model leaves open, if the graph with all of them open is the model. Where it is not, or
export cannot follow what the model computes from its sizes, the batch alone is open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from octavo.errors import CaptureError, InputError
from octavo.graph.calls import flatten_call
from octavo.graph.graph import Graph
from octavo.graph.open_sizes import OpenSizes, batch_sizes, check_stated, named, tied
from octavo.graph.size_guards import Expression, Guard, sizes_in

# Whether an axis of one of a call's tensors may be open.
MayBeOpen = Callable[[Tensor, int], bool]
# The graph for a call's arguments, with sizes open.
GraphFor = Callable[[tuple[Any, ...], dict[str, Any], MayBeOpen], Graph]


# Whether there may be a graph with fewer sizes open, where there is none with all.
MayHelp = Callable[[CaptureError], bool]


def is_any(tensor: Tensor, axis: int) -> bool:
    """Every axis may be open."""
    return True


def _is_first(tensor: Tensor, axis: int) -> bool:
    return axis == 0


def with_sizes_open(
    graph_for: GraphFor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    open_sizes: OpenSizes | None,
    may_help: MayHelp,
) -> Graph:
    """The graph for a call, with the sizes open that have to be, or all that can be.

    Raises:
        CaptureError: there is no graph.
        InputError: the model fixes a size that has to be open.
    """
    if open_sizes is None:
        try:
            return named(_with_all(graph_for, args, kwargs), {})
        except CaptureError as error:
            if not may_help(error):
                raise
            fixed = named(graph_for(args, kwargs, _is_first), {})
            return _told(fixed, str(error).split(". ")[0])
    return named(_with_few(graph_for, args, kwargs, open_sizes, may_help), open_sizes)


def _with_all(graph_for: GraphFor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
    """The graph with all sizes open that the model leaves open."""
    graph = graph_for(args, kwargs, is_any)
    pinned = _pinned(graph)
    ones = {size for size, guard in pinned.items() if 1 in guard.condition}
    larger = _larger(graph_for, graph, args, kwargs, ones) if ones else None
    if larger is not None:
        return larger
    if not pinned:
        return graph
    left = _open(graph) - pinned.keys()
    graph = graph_for(args, kwargs, _among(left, graph, args, kwargs))
    examples = {entry.name: entry.sizes for entry in graph.inputs}
    guards = (
        Guard(("==", ("size", name, axis), examples[name][axis]), guard.reason)
        for (name, axis), guard in pinned.items()
    )
    return replace(graph, guards=(*graph.guards, *guards))


def _larger(
    graph_for: GraphFor,
    graph: Graph,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    sizes: set[tuple[str, int]],
) -> Graph | None:
    """The graph for a call of twice these sizes; ``None`` where it is not that of this call too.

    Export takes a computed size of one, as of a pyramid's last map, for a constant.
    """
    axes = {
        id(tensor): [axis for name, axis in sizes if name == entry.name]
        for entry, tensor in zip(graph.inputs, flatten_call(graph, args, kwargs), strict=True)
    }

    def doubled(tensor: Tensor) -> Tensor:
        for axis in axes.get(id(tensor), ()):
            tensor = torch.cat([tensor, tensor], axis)
        return tensor

    more_args, more_kwargs = pytree.tree_map_only(Tensor, doubled, (args, kwargs))
    try:
        larger = graph_for(more_args, more_kwargs, is_any)
        tensors = flatten_call(larger, args, kwargs)
    except (CaptureError, InputError):
        return None
    if _pinned(larger):
        return None
    entries = zip(larger.inputs, tensors, strict=True)
    inputs = tuple(replace(entry, example=tuple(tensor.shape)) for entry, tensor in entries)
    return replace(larger, inputs=inputs)


def _pinned(graph: Graph) -> dict[tuple[str, int], Guard]:
    """The sizes that the model computes with until they give a number, and the guard that says so.

    As of images that are flattened for a linear layer, ``4 * (h // 2) * (w // 2) == 36``. Few sizes
    satisfy that, and those that do are not what anyone has in mind. Plain products, as of rows that
    are reshaped, are left open, and so are first axes.
    """
    pinned: dict[tuple[str, int], Guard] = {}
    for guard in graph.guards:
        kind, *sides = guard.condition
        computed = [side for side in sides if isinstance(side, tuple)]
        if kind == "==" and len(computed) == 1 and _is_computed(computed[0]):
            of_rest = (size for size in sizes_in(guard.condition) if size[1])
            pinned |= {size: guard for size in of_rest if size in _open(graph)}
    return pinned


def _is_computed(expression: Expression) -> bool:
    """Whether it is more than a product of sizes, and no remainder."""
    if not isinstance(expression, tuple) or expression[0] in ("size", "%"):
        return False
    return expression[0] in ("+", "//") or any(map(_is_computed, expression[1:]))


def _open(graph: Graph) -> set[tuple[str, int]]:
    """Input and axis of each open size."""
    return {size for group in tied(graph) for size in group}


def _among(
    sizes: set[tuple[str, int]], graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> MayBeOpen:
    """Whether an axis of one of this call's tensors is among sizes of a graph's inputs."""
    tensors = flatten_call(graph, args, kwargs)
    names = {id(t): name for t, name in zip(tensors, graph.input_names(), strict=True)}
    return lambda tensor, axis: (names[id(tensor)], axis) in sizes


def _with_few(
    graph_for: GraphFor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    stated: OpenSizes,
    may_help: MayHelp,
) -> Graph:
    """The graph with the batch and what is stated open, and what is always equal to these."""
    if not stated:
        return graph_for(args, kwargs, _is_first)
    wanted = {(name, axis) for name, axes in stated.items() for axis in axes}
    try:
        graph = _with_all(graph_for, args, kwargs)
    except CaptureError as error:
        if not may_help(error):
            raise
        graph = graph_for(args, kwargs, _is_first)
        wanted |= set(batch_sizes(graph))
    else:
        check_stated(graph, stated)
        groups = tied(graph)
        wanted |= set(batch_sizes(named(graph, stated)))
        wanted = set().union(*(group for group in groups if group & wanted))
        if wanted == set().union(*groups):
            return graph
    return graph_for(args, kwargs, _among(wanted, graph, args, kwargs))


def _told(graph: Graph, why: str) -> Graph:
    """The graph with the reason why sizes are fixed."""
    guards = list(graph.guards)
    known = {guard.condition for guard in guards}
    for entry in graph.inputs:
        for axis, size in enumerate(entry.meta.shape):
            condition = ("==", ("size", entry.name, axis), size)
            if size is not None and condition not in known:
                guards.append(Guard(condition, f"with more than the batch open, {why}"))
    return replace(graph, guards=tuple(guards))
