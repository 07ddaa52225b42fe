"""Where scales can go in a block of a model: found by running it, and tried before it is believed.

Nothing is known of any class. Which layers read one tensor, and which norm returned it, is seen by
watching a run. What a linear layer makes of an input that is further away, the values for the
output of attention, say, is found by doubling its rows: a channel that doubles exactly is made by
that row alone.

Tested in tests/flow/blockwise/test_finding_folds.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from octavo.flow.blockwise.events import Event, columns_of, first_tensor, watched
from octavo.flow.blockwise.folds import Fold, Made
from octavo.flow.blockwise.measuring_inputs import FloatLayer
from octavo.model.nn import quantized_form
from octavo.model.nn.float_layers import tensors_of
from octavo.model.nn.linear import Linear

Run = Callable[[], Tensor]

_TRIED = 8  # linear layers before an input, of which one may make it


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
    events = watched(block.modules(), run)
    folds = list(_folds_inside(layers, shared))
    inside = {path for fold in folds for path in fold.paths}
    paths: dict[nn.Module, list[str]] = {}
    for path, one in layers.items():
        if path not in inside:
            paths.setdefault(one.host, []).append(path)
    groups: dict[tuple[int, int, int], list[Event]] = {}
    for event in events:
        groups.setdefault(event.input_key, []).append(event)
    for key, group in groups.items():
        own = tuple(path for event in group for path in paths.get(event.module, ()))
        if own and not any(_has(event.module, shared) for event in group):
            readers = [columns for event in group for columns in columns_of(event)]
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


def _has(maker: nn.Module, shared: Collection[int]) -> bool:
    return any(id(parameter) in shared for parameter in maker.parameters())


def _makers(events: list[Event], group: list[Event], key: tuple[int, int, int]) -> list[nn.Module]:
    """What may make an input: what returned it; else linear layers before, the last one first."""
    direct = [event.module for event in events if event.output_key == key]
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


def rows_behind(events: list[Event], reader: Event, run: Run) -> tuple[nn.Module, Tensor] | None:
    """The linear layer that makes an input, with only linear things in between, and its rows.

    Args:
        events: of a block.
        reader: one of them.
        run: runs the block.

    Returns:
        The layer, and of which of its rows each channel is a multiple, int64 ``[in]``, -1 for none.
    """
    for maker in _makers(events, [reader], reader.input_key):
        if quantized_form(maker) is Linear:
            made_by = _rows(maker, reader.input.shape[-1], lambda: _read(reader.module, run))
            if made_by is not None:
                return maker, made_by
    return None


class _Read(Exception):
    """Ends a run where all is known."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


def _read(reader: nn.Module, run: Run) -> Tensor:
    """The input of a module, ``[rows, in]``, in a run that ends there."""

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        x = first_tensor((*args, *kwargs.values()))
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
    """Inside, these rows are twice what they are, which is exact in floats but for the largest of
    them; so what they were is kept.
    """
    factors = torch.ones(len(weight), dtype=weight.dtype, device=weight.device)
    factors[rows] = 2.0
    before = [(tensor, tensor.clone()) for tensor in (weight, bias) if tensor is not None]
    with torch.no_grad():
        for tensor, values in before:
            tensor.copy_(values * factors.reshape(-1, *[1] * (values.dim() - 1)))
        try:
            yield
        finally:
            for tensor, values in before:
                tensor.copy_(values)


def _doubles(exact: Tensor, x: Tensor) -> Tensor | None:
    """Which channels are twice what they were, bool ``[in]``; ``None`` where some are neither that
    nor as they were.
    """
    tiny = torch.finfo(x.dtype).tiny  # numbers below it double with a rounding
    same, twice = (torch.isclose(x, y, 1e-3, 4 * tiny).all(0) for y in (exact, 2 * exact))
    return twice & ~same if bool((same | twice).all()) else None
