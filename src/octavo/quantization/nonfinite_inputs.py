"""Inputs that integers cannot hold: NaN, infinities, and batches without a sample.

Samples with a NaN or an infinity are computed without rounding, on every runtime: they get what the
float model returns for them, NaN mostly, and the samples beside them what they get without them. An
empty batch, of which some kernels find no range, is computed like that too. A look at the inputs
tells whether there is anything to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.errors import InputError
from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.program import run_of
from octavo.graph.tracing import without_values
from octavo.numerics.native import observing
from octavo.quantization.float_graph import roundings_removed

_Run = Callable[..., tuple[Any, ...]]

# Through these a mask stays a mask.
_CARRIERS = frozenset(
    """
    add amax masked_fill to contiguous clone unsqueeze squeeze view reshape flatten unflatten
    transpose permute expand repeat narrow select slice getitem where
    """.split()
)
_SOFTMAX = frozenset({"softmax", "_softmax"})
# Operator -> position of its mask.
_MASKED = {"scaled_dot_product_attention": 3, "attention": 3}


@dataclass(frozen=True)
class Watched:
    """The inputs to look at before a call, by position.

    Attributes:
        values: floats that ought to be finite.
        masks: floats that are only added to scores before a softmax: minus infinity hides a score,
            but one in each row has to be left.
        batched: inputs with an open batch, and the axis where it is.
    """

    values: tuple[int, ...]
    masks: tuple[int, ...]
    batched: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, graph: Graph) -> Watched:
        """Those of a graph's inputs."""
        masks = masks_of(graph)
        floats = [(i, g.name) for i, g in enumerate(graph.inputs) if _is_float(g.meta)]
        return cls(
            tuple(index for index, name in floats if name not in masks),
            tuple(index for index, name in floats if name in masks),
            tuple(
                (index, axis)
                for index, entry in enumerate(graph.inputs)
                if (axis := entry.batch_axis) is not None
            ),
        )

    def are_fine(self, tensors: Sequence[Tensor], threads: int | None = None) -> bool:
        """Whether there is nothing to do, as far as a quick look tells.

        Args:
            tensors: the inputs.
            threads: that look, at most; ``None`` is torch's number.
        """
        if without_values() or any(tensor.is_meta for tensor in tensors):
            return True  # there are no values to look at
        if self.are_empty(tensors):
            return False
        for index in self.values:
            if not _are_finite(tensors[index], threads):
                return False
        for index in self.masks:
            mask = tensors[index]
            if mask.numel() and not math.isfinite(mask.amax(-1).sum(dtype=torch.float32)):
                return False
        return True

    def are_empty(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the batch has no samples."""
        return any(tensors[index].shape[axis] == 0 for index, axis in self.batched)


def _are_finite(x: Tensor, threads: int | None) -> bool:
    """Whether no value is NaN or an infinity; a sum of finite values may overflow and say so too.

    Octavo's own kernel is asked first, or else numpy if one thread is to look: what torch sums on
    several leaves them spinning, and whoever runs next shares the cores with them.
    """
    whole = x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )
    if whole and x.dtype == torch.float32 and observing.reads(x):
        return observing.are_finite(x, threads)
    if threads == 1 and x.dtype == torch.float32 and x.is_cpu:
        with np.errstate(all="ignore"):
            return math.isfinite(x.detach().resolve_neg().numpy().sum())
    return math.isfinite(x.sum(dtype=torch.float32))


def masks_of(graph: Graph) -> frozenset[str]:
    """The float inputs in which minus infinity means that a score is hidden."""
    users = graph.users
    return frozenset(g.name for g in graph.inputs if _is_float(g.meta) and _is_mask(g.name, users))


def _is_mask(name: str, users: Mapping[str, Sequence[Node]]) -> bool:
    return bool(users[name]) and all(_reads_mask(user, name, users) for user in users[name])


def _reads_mask(user: Node, name: str, users: Mapping[str, Sequence[Node]]) -> bool:
    op = user.short_op
    if op in _MASKED:
        return [i for i, arg in enumerate(user.args) if arg == Ref(name)] == [_MASKED[op]]
    is_zeroed = op == "mul" and user.args[1:] == (0.0,)  # NaN where nothing is left to see
    carries = op in _CARRIERS or is_zeroed
    return op in _SOFTMAX or (carries and _is_mask(user.name, users))


def run_around(
    graph: Graph, watched: Watched, run: _Run, tensors: Sequence[Tensor]
) -> tuple[Any, ...]:
    """The results of inputs that are not fine: those of bad samples are computed without rounding.

    Args:
        graph: the quantized graph.
        watched: its inputs that are looked at.
        run: what runs it.
        tensors: its inputs.

    Raises:
        InputError: a result of integers is computed from NaN.
    """
    names = graph.output_names()
    if watched.are_empty(tensors):
        exact = _without_rounding(graph, tensors)
        return tuple(exact[name] for name in names)
    bad = _bad_samples(graph, watched, tensors)
    if not bool(bad.any()):  # the sum that was looked at has overflowed
        return run(*tensors)
    exact = _without_rounding(graph, tensors)
    for name in names:
        if any(bool(exact[value].isnan().any()) for value in _floats_behind(graph, name)):
            raise InputError(
                f"{_account(graph, bad)}; the result {name!r} is {graph.metas[name]}, "
                "which cannot hold a NaN to say so: leave these samples out"
            )
    if bool(bad.all()):
        return tuple(exact[name] for name in names)
    pairs = zip(graph.inputs, tensors, strict=True)
    emptied = [_emptied(tensor, entry, bad) for entry, tensor in pairs]
    alone = _without_rounding(graph, emptied)
    return tuple(
        _merged(result, exact[name], alone[name], graph.metas.get(name), bad)
        for name, result in zip(names, run(*emptied), strict=True)
    )


def refuse_bad_samples(graph: Graph, watched: Watched, tensors: Sequence[Tensor]) -> None:
    """For what runs no graph.

    Raises:
        InputError: there are bad samples.
    """
    bad = _bad_samples(graph, watched, tensors)
    if bool(bad.any()):
        raise InputError(f"{_account(graph, bad)}: leave these samples out")


def _bad_samples(graph: Graph, watched: Watched, tensors: Sequence[Tensor]) -> Tensor:
    """Boolean ``[batch]``, or ``[1]`` where no size is open."""
    axes = dict(watched.batched)
    sizes = [tensors[index].shape[axis] for index, axis in watched.batched]
    bad = torch.zeros(sizes[0] if sizes else 1, dtype=torch.bool, device=graph.device)
    for index in (*watched.values, *watched.masks):
        tensor, axis = tensors[index], axes.get(index)
        if index in watched.masks:
            tensor = tensor.amax(-1, keepdim=True)
        lost = ~torch.isfinite(tensor)
        if axis is None:
            bad |= lost.any()
        else:
            bad |= lost.movedim(axis, 0).flatten(1).any(1) if lost.dim() > 1 else lost
    return bad


def _without_rounding(graph: Graph, tensors: Sequence[Tensor]) -> dict[str, Any]:
    """The results of the graph when nothing is rounded, and the floats that they come from."""
    names = graph.output_names()
    wanted = dict.fromkeys(names)
    for name in names:
        wanted |= dict.fromkeys(_floats_behind(graph, name))
    exact = roundings_removed(replace(graph, outputs=[Ref(name) for name in wanted]))
    run = run_of(exact, graph.device)
    return dict(zip(wanted, run(*tensors), strict=True))


def _floats_behind(graph: Graph, name: str) -> Iterator[str]:
    """The last floats that a result which is none is computed from."""
    to_see, seen = [name], set()
    while to_see:
        current = to_see.pop()
        if current in seen or current in graph.constants:
            continue
        seen.add(current)
        if _is_float(graph.metas[current]):
            if current != name:
                yield current
        elif current in graph.by_name:
            to_see += graph.by_name[current].refs()


def _emptied(tensor: Tensor, entry: Input, bad: Tensor) -> Tensor:
    """An input with zeros for bad samples: they stretch no range that others share."""
    axis = entry.batch_axis
    if axis is None or not _is_float(entry.meta):
        return tensor
    return torch.where(_along(bad, axis, tensor), 0.0, tensor)


def _merged(result: Any, exact: Any, alone: Any, meta: TensorMeta | None, bad: Tensor) -> Any:
    """A result, with what it is without rounding for bad samples and whatever depends on them, as
    later steps do where a sequence was taken for a batch: there it is not as it is ``alone``.

    All of it is that where samples cannot be told apart.
    """
    axis = _batch_axis(meta)
    if axis is None or result.shape[axis] != len(bad):
        return exact
    replaced = _along(bad, axis, result) | ~torch.isclose(exact, alone)
    return torch.where(replaced, exact, result)


def _along(bad: Tensor, axis: int, tensor: Tensor) -> Tensor:
    return bad.reshape([-1] + [1] * (tensor.dim() - 1 - axis))


def _account(graph: Graph, bad: Tensor) -> str:
    names = ", ".join(repr(entry.name) for entry in graph.inputs if _is_float(entry.meta))
    samples = bad.nonzero().flatten().tolist()
    shown = f"{samples[:8]} and {len(samples) - 8} more" if len(samples) > 8 else f"{samples}"
    return f"the input {names} has NaN or an infinity in the samples {shown}"


def _batch_axis(meta: TensorMeta | None) -> int | None:
    """The first axis whose size is open."""
    sizes = () if meta is None else meta.shape
    return sizes.index(None) if None in sizes else None


def _is_float(meta: TensorMeta | None) -> bool:
    return meta is not None and meta.dtype in ("float32", "float16", "bfloat16", "float64")
