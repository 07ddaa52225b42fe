"""Inputs for a graph when there is no data: random, of the sizes that it was captured with, and
within the ranges of the data that it has seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.graph.calls import check_guards
from octavo.graph.graph import Graph, Input
from octavo.graph.open_sizes import batch_sizes
from octavo.graph.size_guards import sizes_in

_LARGE = 1e6  # beyond it a range is not one of numbers: a mask holds nothing but its ends
_LESS = (1, 2, 4, 8, 16, 32)  # by which a size is made smaller, until a model takes it
_SET = 0.9  # share of a mask's elements that are let through


def random_inputs(graph: Graph, batch: int | None = None, seed: int = 0) -> tuple[Tensor, ...]:
    """A tensor for each input.

    Floats are normal, six standard deviations of them between the least and the largest value that
    was seen; integers lie anywhere between. What has just two values, as masks have, mostly has the
    larger, and always in the first place of a row. Where no range is known: standard normal floats,
    bytes for uint8, ones for other dtypes.

    Args:
        graph: whose inputs.
        batch: size of the batch where that is open; ``None`` is the example's.
        seed: of the random numbers.

    Raises:
        InputError: the model was captured for other batches.
    """
    sizes = _sizes(graph, batch)
    check_guards(graph, sizes)
    generator = torch.Generator().manual_seed(seed)
    return tuple(_random(entry, sizes[entry.name], generator) for entry in graph.inputs)


def smaller_inputs(graph: Graph, seed: int = 0) -> tuple[Tensor, ...] | None:
    """As `random_inputs`, where open sizes but for the batch are smaller than the example's.

    ``None`` where there are none, or the model was captured for no such sizes.
    """
    for less in _LESS:
        sizes = {
            entry.name: tuple(
                max(1, size - less) if called and axis != entry.batch_axis else size
                for axis, (size, called) in enumerate(zip(entry.sizes, entry.axes, strict=True))
            )
            for entry in graph.inputs
        }
        if sizes == _sizes(graph, None):
            return None
        if graph.broken_guard(sizes) is None:
            generator = torch.Generator().manual_seed(seed)
            return tuple(_random(entry, sizes[entry.name], generator) for entry in graph.inputs)
    return None


def takes(graph: Graph, tensors: Sequence[Tensor]) -> bool:
    """Whether the model was captured for inputs of these sizes."""
    shapes = dict(zip(graph.input_names(), [t.shape for t in tensors], strict=True))
    return graph.broken_guard(shapes) is None


def takes_batch(graph: Graph, batch: int) -> bool:
    """Whether the model was captured for batches of this size."""
    return graph.broken_guard(_sizes(graph, batch)) is None


def _sizes(graph: Graph, batch: int | None) -> dict[str, tuple[int, ...]]:
    """The shapes of the inputs, of which a batch may have been fixed by ``forward``."""
    sizes = {entry.name: list(entry.sizes) for entry in graph.inputs}
    if batch is not None:
        fixed = {size for guard in graph.guards for size in sizes_in(guard.condition)}
        first = {(e.name, 0) for e in graph.inputs if e.batch_axis is None}
        for name, axis in {*batch_sizes(graph), *(fixed & first)}:
            sizes[name][axis] = batch
    return {name: tuple(shape) for name, shape in sizes.items()}


def _random(entry: Input, sizes: Sequence[int], generator: torch.Generator) -> Tensor:
    dtype: torch.dtype = getattr(torch, entry.meta.dtype)
    if entry.seen is None:
        return _unseen(sizes, dtype, generator)
    low, high = entry.seen
    if _is_mask(low, high, dtype):
        return _mask(sizes, low, high, generator).to(dtype)
    if dtype.is_floating_point:
        values = torch.randn(sizes, generator=generator, dtype=torch.float64)
        return ((low + high) / 2 + values * (high - low) / 6).clamp(low, high).to(dtype)
    return torch.randint(int(low), int(high) + 1, sizes, generator=generator).to(dtype)


def _unseen(sizes: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(sizes, generator=generator, dtype=dtype)
    if dtype == torch.uint8:
        return torch.randint(0, 256, sizes, generator=generator, dtype=dtype)
    return torch.ones(sizes, dtype=dtype)


def _is_mask(low: float, high: float, dtype: torch.dtype) -> bool:
    if dtype.is_floating_point:
        return max(abs(low), abs(high)) > _LARGE
    return dtype == torch.bool or 0 <= low < high <= 1


def _mask(sizes: Sequence[int], low: float, high: float, generator: torch.Generator) -> Tensor:
    through = torch.rand(sizes, generator=generator) < _SET
    through[..., :1] = True
    return torch.where(through, torch.tensor(high).double(), torch.tensor(low).double())
