"""Where scales can go in a block of a model: found by running it, and tried before it is believed.

Nothing is known of any class. Which layers read one tensor, and which norm returned it, is seen by
watching a run. What a linear layer makes of an input that is further away, the values for the
output of attention, say, is found by doubling its rows: a channel that doubles exactly is made by
that row alone.

Tested in tests/flow/blockwise/test_finding_folds.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from octavo.flow.blockwise.folds import Fold, Made
from octavo.flow.blockwise.measuring_inputs import FloatLayer
from octavo.model.nn import quantized_form
from octavo.model.nn.experts import Experts, linears_of
from octavo.model.nn.float_layers import tensors_of
from octavo.model.nn.linear import Linear

Run = Callable[[], Tensor]

_TRIED = 8  # linear layers before an input, of which one may make it


@dataclass(frozen=True)
class _Event:
    """A call of a module: what it reads first, and what it returns."""

    module: nn.Module
    input: Tensor
    output: Tensor


def find_folds(
    block: nn.Module, run: Run, layers: Mapping[str, FloatLayer], shared: Collection[int]
) -> list[Fold]:
    """The inputs of some layers that can be scaled.

    Args:
        block: the module that holds them.
        run: runs it, and returns its result.
        layers: those that become integers, by their paths.
        shared: ids of parameters that stand in several places, and are left alone.
    """
    events = _watched(block, run)
    folds = list(_folds_inside(layers, shared))
    inside = {path for fold in folds for path in fold.paths}
    paths: dict[nn.Module, list[str]] = {}
    for path, one in layers.items():
        if path not in inside:
            paths.setdefault(one.host, []).append(path)
    groups: dict[tuple[int, int, int], list[_Event]] = {}
    for event in events:
        groups.setdefault(_key(event.input), []).append(event)
    for key, group in groups.items():
        own = tuple(path for event in group for path in paths.get(event.module, ()))
        if own and not any(_has(event.module, shared) for event in group):
            readers = [columns for event in group for columns in _columns(event)]
            makers = [m for m in _makers(events, group, key) if not _has(m, shared)]
            fold = _fold(group[0].module, run, own, readers, makers)
            folds += [] if fold is None else [fold]
    return folds


def _folds_inside(layers: Mapping[str, FloatLayer], shared: Collection[int]) -> Iterator[Fold]:
    """Those of the second layers of experts with gates: the values are made by the first ones."""
    for path, one in layers.items():
        at, _, index = path.rpartition(".")
        stack = at.rpartition(".")[2]
        if one.is_expert and stack == "down_proj" and not _has(one.host, shared):
            first = f"{at.removesuffix(stack)}gate_up_proj.{index}"
            if first in layers:
                made, weight = tensors_of(layers[first].module), tensors_of(one.module)["weight"]
                inside = weight.shape[1]
                rows = torch.arange(inside, 2 * inside, device=weight.device)
                yield Fold((path,), list(map(Made, made.values())), [weight], rows)


def _watched(block: nn.Module, run: Run) -> list[_Event]:
    """The calls of all modules that are called once, with parameters of their own."""
    events: list[_Event] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        read, made = _first((*args, *kwargs.values())), _first(pytree.tree_leaves(result))
        if read is not None and made is not None:
            events.append(_Event(module, read, made))

    modules = [module for module in block.modules() if any(True for _ in module.parameters(False))]
    handles = [module.register_forward_hook(look, with_kwargs=True) for module in modules]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    counts = [event.module for event in events]
    return [event for event in events if counts.count(event.module) == 1]


def _first(values: Iterable[Any]) -> Tensor | None:
    return next((x for x in values if isinstance(x, Tensor)), None)


def _key(x: Tensor) -> tuple[int, int, int]:
    """The same for a tensor and what is only another shape of it."""
    return x.data_ptr(), x.numel(), x.shape[-1]


def _has(maker: nn.Module, shared: Collection[int]) -> bool:
    return any(id(parameter) in shared for parameter in maker.parameters())


def _columns(event: _Event) -> list[Tensor]:
    """The weights of a module that read its input, ``[out, in]``; a router has one too."""
    form = quantized_form(event.module)
    if form is Linear:
        return [tensors_of(event.module)["weight"]]
    if form is Experts:
        first = next(iter(linears_of(event.module).values()))
        return [tensors_of(expert)["weight"] for expert in first]
    weight = event.module._parameters.get("weight")
    is_matrix = weight is not None and weight.dim() == 2
    return [weight] if weight is not None and is_matrix and _fits(weight, event) else []


def _fits(weight: Tensor, event: _Event) -> bool:
    return weight.shape[1] == event.input.shape[-1]


def _makers(
    events: list[_Event], group: list[_Event], key: tuple[int, int, int]
) -> list[nn.Module]:
    """What may make an input: what returned it; else linear layers before, the last one first."""
    direct = [event.module for event in events if _key(event.output) == key]
    if direct:
        return direct
    # A module is listed when it returns: what comes before the first reader was done by then.
    before = events[: events.index(group[0])]
    linears = [event.module for event in before if quantized_form(event.module) is Linear]
    return linears[: -_TRIED - 1 : -1]


def _fold(
    reader: nn.Module,
    run: Run,
    paths: tuple[str, ...],
    readers: list[Tensor],
    makers: list[nn.Module],
) -> Fold | None:
    columns = readers[0].shape[1]
    for maker in makers:
        if quantized_form(maker) is Linear:
            made_by = _rows(maker, columns, lambda: _read(reader, run))
            tensors = tensors_of(maker)
            options = [[Made(tensors[n]) for n in ("weight", "bias") if n in tensors]]
        else:
            made_by = torch.arange(columns, device=readers[0].device)
            options = list(_norm(maker, columns))
        for made in options:
            fold = None if made_by is None else Fold(paths, made, readers, made_by)
            if fold is not None and fold.is_exact(run):
                return fold
    return None


def _norm(maker: nn.Module, columns: int) -> Iterator[list[Made]]:
    """What may scale the results of a norm: its weight, or one more than it."""
    own = dict(maker.named_parameters(recurse=False))
    weight = own.pop("weight", None)
    if weight is None or any(p.shape != (columns,) for p in (weight, *own.values())):
        return
    for offset in (0.0, 1.0):
        yield [Made(weight, offset), *map(Made, own.values())]


class _Read(Exception):
    """Ends a run where all is known."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


def _read(reader: nn.Module, run: Run) -> Tensor:
    """The input of a module, ``[rows, in]``, in a run that ends there."""

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        x = _first((*args, *kwargs.values()))
        assert x is not None  # it was watched
        raise _Read(x)

    handle = reader.register_forward_pre_hook(look, with_kwargs=True)
    try:
        run()
    except _Read as read:
        return read.x.detach().reshape(-1, read.x.shape[-1]).clone()
    finally:
        handle.remove()
    raise AssertionError("it was called a moment ago")


def _rows(maker: nn.Module, columns: int, read: Callable[[], Tensor]) -> Tensor | None:
    """Of which row of a linear layer each channel of an input is a multiple, int64 ``[columns]``.

    ``None`` where it is not so: something that is not linear stands between.
    """
    tensors = tensors_of(maker)
    weight, bias = tensors["weight"], tensors.get("bias")
    exact = read()
    for candidates in _candidates(len(weight), columns, weight.device):
        with _doubled(weight, bias, candidates):
            doubled = _doubles(exact, read())
        if doubled is None or not bool(doubled.any()):
            continue
        made_by = torch.zeros(columns, dtype=torch.int64, device=weight.device)
        for bit in range(len(candidates).bit_length()):
            places = torch.arange(1, len(candidates) + 1, device=weight.device)
            with _doubled(weight, bias, candidates[(places >> bit) % 2 == 1]):
                has_bit = _doubles(exact, read())
            if has_bit is None:
                return None
            made_by += has_bit.to(torch.int64) << bit
        return torch.where(made_by > 0, candidates[made_by.clamp(1, len(candidates)) - 1], -1)
    return None


def _candidates(rows: int, columns: int, device: torch.device) -> Iterator[Tensor]:
    """Which rows may make an input: all, or those of values, where one layer makes others too."""
    every = torch.arange(rows, device=device)
    yield every
    if rows > columns and (rows - columns) % 2 == 0:
        yield every[-((rows - columns) // 2) :]  # queries, keys, values; heads may share the last
    if rows == 2 * columns:
        yield every[columns:]  # gates, values
        yield every[:columns]
    if rows == 3 * columns:  # queries, keys and values of one head after the other
        for heads in (count for count in range(2, 129) if columns % count == 0):
            yield every.reshape(heads, 3, -1)[:, 2].flatten()


@contextmanager
def _doubled(weight: Tensor, bias: Tensor | None, rows: Tensor) -> Iterator[None]:
    """Inside, these rows are twice what they are; in floats that is exact, and so is its half."""
    factors = torch.ones(len(weight), dtype=weight.dtype, device=weight.device)
    factors[rows] = 2.0
    with torch.no_grad():
        weight.mul_(factors[:, None])
        if bias is not None:
            bias.mul_(factors)
        try:
            yield
        finally:
            weight.div_(factors[:, None])
            if bias is not None:
                bias.div_(factors)


def _doubles(exact: Tensor, x: Tensor) -> Tensor | None:
    """Which channels are twice what they were, bool ``[in]``; ``None`` where some are neither that
    nor as they were.
    """
    same, twice = (x == exact).all(0), (x == 2 * exact).all(0)
    return twice & ~same if bool((same | twice).all()) else None
