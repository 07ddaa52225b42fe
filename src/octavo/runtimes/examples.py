"""Inputs for a graph when there is no data: random, of the sizes that it was captured with."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.graph import Graph, Input


def random_inputs(graph: Graph, batch: int | None = None, seed: int = 0) -> tuple[Tensor, ...]:
    """A tensor for each input: normal floats, bytes for uint8, ones for other dtypes.

    Args:
        graph: whose inputs.
        batch: size of the first axis where that is open; ``None`` is the example's.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    return tuple(_random(given, batch, generator) for given in graph.inputs)


def _random(given: Input, batch: int | None, generator: torch.Generator) -> Tensor:
    sizes = list(given.sizes)
    if batch is not None and given.meta.shape and given.meta.shape[0] is None:
        sizes[0] = batch
    dtype = getattr(torch, given.meta.dtype)
    if dtype.is_floating_point:
        return torch.randn(sizes, generator=generator, dtype=dtype)
    if dtype == torch.uint8:
        return torch.randint(0, 256, sizes, generator=generator, dtype=dtype)
    return torch.ones(sizes, dtype=dtype)
