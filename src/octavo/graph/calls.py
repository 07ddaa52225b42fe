"""Between a Python call and a graph's flat list of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from octavo.arguments import described
from octavo.errors import InputError
from octavo.graph.graph import Graph, Input, Ref, TensorMeta, map_refs
from octavo.graph.records import (
    OTHER_CACHE,
    cache_record,
    is_cache,
    is_other_cache,
    with_objects,
)
from octavo.graph.size_guards import Guard, sizes_in

# What forward calls labels where it makes a loss of them; these are the names in transformers.
# class_labels and targets are none of them: elsewhere they are what a model is conditioned on.
LABEL_ARGUMENTS = (
    "labels",
    "label",
    "start_positions",
    "end_positions",
    "next_sentence_label",
    "sentence_order_label",
    "mc_labels",
)


_MOST_KINDS = 1024  # of calls that are remembered


def flatten_call(graph: Graph, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The graph's input tensors, in order, out of a call's arguments.

    Raises:
        InputError: an argument is missing, unknown, of another structure, shape or dtype.
    """
    names = list(graph.arguments)
    while len(args) > len(names) and args[-1] is None:  # an optional argument that is not given
        args = args[:-1]
    if len(args) > len(names):
        raise InputError(
            f"the model takes {len(names)} arguments {names}, not {len(args)}; if forward takes "
            "more, capture it with all of them, as example_inputs. Of batches what is optional is "
            "taken for labels: inputs=lambda batch: batch keeps it"
        )
    given = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in graph.arguments:
            raise InputError(
                f"the model has no argument {name!r}; it was captured with {names}: {_leave(name)}"
            )
        if name in given:
            raise InputError(f"the argument {name!r} is given twice")
        given[name] = value
    tensors: dict[str, Tensor] = {}
    for name, tree in graph.arguments.items():
        if name in given:
            _match(tree, given[name], name, tensors)
        elif tree is not None:
            raise InputError(f"the argument {name!r} is missing; the model takes {names}")
    for expected in graph.inputs:
        _check(expected, tensors[expected.name], graph)
    check_guards(graph, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return [tensors[expected.name] for expected in graph.inputs]


class PlainCalls:
    """Calls with a tensor for each input, in order, of shapes and types that were checked before.

    They are most of all calls, and to check each anew takes a tenth of a small model's time.

    Args:
        graph: that is called.
    """

    def __init__(self, graph: Graph) -> None:
        inputs = [Ref(expected.name) for expected in graph.inputs]
        self._graph, self._fit = graph, list(graph.arguments.values()) == inputs
        self._checked: set[tuple[Any, ...]] = set()

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Tensor]:
        """As `flatten_call`.

        Raises:
            InputError: as `flatten_call`.
        """
        if kwargs or not self._fit:
            return flatten_call(self._graph, args, kwargs)
        kind = tuple(
            [(x.shape, x.dtype) if type(x) is Tensor and _is_dense(x) else None for x in args]
        )
        if kind in self._checked:
            return args
        tensors = flatten_call(self._graph, args, kwargs)
        if None not in kind and len(self._checked) < _MOST_KINDS:
            self._checked.add(kind)
        return tensors


def with_seen(graph: Graph, tensors: Sequence[Tensor]) -> Graph:
    """The graph with the ranges of these tensors at its inputs."""
    pairs = zip(graph.inputs, tensors, strict=True)
    return replace(graph, inputs=tuple(replace(i, seen=range_of(t)) for i, t in pairs))


def first_samples(entry: Input, tensor: Tensor, count: int) -> Tensor:
    """A view of an input's first samples; all of it where its batch is not open."""
    if entry.batch_axis is None:
        return tensor
    return tensor.narrow(entry.batch_axis, 0, min(count, tensor.shape[entry.batch_axis]))


def range_of(tensor: Tensor) -> tuple[float, float] | None:
    """The least and the largest value; ``None`` where there is none, or one is not a number."""
    if not tensor.numel() or tensor.is_complex():
        return None
    low, high = (bound.item() for bound in torch.aminmax(tensor.double()))
    return (float(low), float(high)) if low <= high else None


def build_output(graph: Graph, tensors: Sequence[Any]) -> Any:
    """The structure that the model returns, around the flat results, with objects in it."""
    if isinstance(graph.outputs, Ref):
        return tensors[0]
    return with_objects(filled_output(graph, tensors))


def filled_output(graph: Graph, tensors: Sequence[Any]) -> Any:
    """The structure that the model returns, around the flat results, with records in it."""
    results: Iterator[Any] = iter(tensors)
    return map_refs(graph.outputs, lambda ref: next(results))


def _leave(name: str) -> str:
    """What to do with an argument that the model was captured without."""
    if name in LABEL_ARGUMENTS:
        return (
            "leave the labels out of the call, and compute the loss outside, from what the model "
            "returns; or capture the model with them (example_inputs), so that it returns its loss"
        )
    return "leave it out, or capture the model with it (example_inputs)"


def _way_to_tensor(value: Any, where: str) -> str:
    if type(value).__module__ == "numpy":
        return f"give a tensor, torch.from_numpy({where})"
    if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
        return "give a tensor; q(*batch) calls the model with the items of a batch"
    if isinstance(value, Mapping):
        return "give a tensor; q(**batch) calls the model with the items of a batch"
    return "give a tensor"


def _is_dense(tensor: Tensor) -> bool:
    """Whether its values lie in memory as shape and strides say."""
    return tensor.layout is torch.strided and not tensor.is_nested


def _way_to_dense(value: Tensor, where: str) -> str:
    if value.is_nested:
        return (
            "a nested tensor: give a padded one, "
            f"torch.nested.to_padded_tensor({where}, 0.0), and a mask of what is padded"
        )
    return f"of layout {value.layout}: give {where}.to_dense()"


def _match(tree: Any, value: Any, where: str, tensors: dict[str, Tensor]) -> None:
    """Collect the tensors of ``value`` that stand where ``tree`` has a `Ref`."""
    if isinstance(tree, Ref):
        if not isinstance(value, Tensor):
            raise InputError(f"{where} is {described(value)}: {_way_to_tensor(value, where)}")
        if not _is_dense(value):
            raise InputError(f"{where} is {_way_to_dense(value, where)}")
        tensors[tree.name] = value
    elif isinstance(tree, list | tuple):
        if not isinstance(value, list | tuple) or len(value) != len(tree):
            raise InputError(
                f"{where} has another structure than at capture, where it had {len(tree)} items"
            )
        for index, (part, item) in enumerate(zip(tree, value, strict=True)):
            _match(part, item, f"{where}[{index}]", tensors)
    elif isinstance(tree, Mapping):
        if is_other_cache(value):
            raise InputError(f"{where} is a {type(value).__name__}: {OTHER_CACHE}")
        value = cache_record(value) if is_cache(value) else value
        items = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
        if {key for key in items if key in tree or items[key] is not None} != set(tree):
            raise InputError(f"{where} has other keys than at capture, {list(tree)}")
        for key, part in tree.items():
            _match(part, items[key], f"{where}[{key!r}]", tensors)
    elif isinstance(value, Tensor) or type(value) is not type(tree) or value != tree:
        raise InputError(
            f"{where} is {value!r}; the model was captured with {tree!r}, which is part of the "
            "graph: capture it again with the other value"
        )


def _check(expected: Input, tensor: Tensor, graph: Graph) -> None:
    meta, found = expected.meta, TensorMeta.of(tensor)
    if found.fits(meta):
        return
    labels = not tensor.is_floating_point() and tensor.dim() <= 1 and meta.dtype == "float32"
    hint = (
        "these look like labels: pass inputs=lambda batch: ... to choose the model's arguments"
        if labels
        else _way_to_fit(expected, tensor)
    )
    if found.dtype == meta.dtype and tensor.dim() == len(meta.shape):
        shapes = {expected.name: tuple(tensor.shape)}
        own = [guard for guard in graph.guards if guard.inputs() == [expected.name]]
        hint = next((f"{g} is fixed: {_way_out(g)}" for g in own if not g.holds(shapes)), hint)
    raise InputError(f"input {expected.name!r} is {found}; expected {expected}; {hint}")


def _way_to_fit(expected: Input, tensor: Tensor) -> str:
    """What to give in place of a tensor of another dtype, or of other sizes."""
    shape = expected.meta.shape
    name = expected.name
    alone = replace(expected.meta, shape=shape[1:])
    if shape and shape[0] is None and TensorMeta.of(tensor).fits(alone):
        return f"it has no batch axis: give {name}[None], a batch of one"
    floats = tensor.is_floating_point() and expected.meta.dtype == "float32"
    if floats and TensorMeta.of(tensor.float()).fits(expected.meta):
        return f"give {name}.float()"
    return f"give the dtype and sizes that the model was captured with{_free(expected)}"


def _free(expected: Input) -> str:
    names = [name for name in expected.axes if name]
    if not names:
        return ""
    return f" ({' and '.join(names)} {'is' if len(names) == 1 else 'are'} free)"


def check_guards(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> None:
    """Hold inputs of these shapes, by name, to the graph's guards.

    Raises:
        InputError: one is not satisfied.
    """
    broken = graph.broken_guard(shapes)
    if broken is not None:
        sizes = ", ".join(f"{name!r} is {list(shapes[name])}" for name in broken.inputs())
        raise InputError(f"input {sizes}; the model was captured for {broken}: {_way_out(broken)}")


def _way_out(guard: Guard) -> str:
    """What to do about a guard that does not hold; it is often about the batch."""
    loader = " (a DataLoader's last one is often smaller: drop_last=True)"
    is_first = any(axis == 0 for _, axis in sizes_in(guard.condition))
    return (
        f"{guard.reason}; give such a batch{loader if is_first else ''}, capture the model with an "
        "example of the size that you need, or rewrite that line for any size"
    )
