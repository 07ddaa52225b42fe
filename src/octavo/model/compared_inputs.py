"""Inputs on which lowering compares a model's results with the oracle's.

Tested in tests/model/test_model.py and tests/runtimes/test_agreement.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from octavo.graph.graph import Graph
from octavo.graph.open_sizes import has_batch
from octavo.graph.qdq import QUANTIZE
from octavo.runtimes.examples import random_inputs, smaller_inputs, takes, takes_batch

_SAMPLES = 2
_OTHER_BATCHES = (1, 7)
_SMALL_MODEL = 2**20  # values of its tensors
_MOST_VALUES = 2**26  # of inputs: what a file says of their sizes shall not fill the memory


def is_small(graph: Graph) -> bool:
    """Whether running it again takes next to no time."""
    return sum(tensor.numel() for tensor in graph.constants.values()) <= _SMALL_MODEL


def _are_zeros(structure: Graph, kept: Sequence[Tensor] | None) -> bool:
    """Whether nothing but zeros is known of the inputs, floats all: the usual example without data.

    A model from a file has no samples, but the ranges that were seen.
    """
    if kept is None:
        floats = all(entry.meta.dtype.startswith("float") for entry in structure.inputs)
        return floats and all(entry.seen == (0.0, 0.0) for entry in structure.inputs)
    return all(t.is_floating_point() for t in kept) and not any(map(torch.any, kept))


def inputs_to_check(
    structure: Graph, kept: tuple[Tensor, ...] | None, batch: int | None, small: bool
) -> list[tuple[Tensor, ...]]:
    """Batches for a graph; none where they would be too large.

    Args:
        structure: the graph; its tensors are not needed.
        kept: samples of the calibration data, if there are any.
        batch: the only batch size that it will be called with; ``None`` for any.
        small: whether the graph `is_small`.
    """
    if kept is not None and not takes(structure, kept):
        kept = None
    calibrated = any(node.op == QUANTIZE for node in structure.nodes)
    if not calibrated and _are_zeros(structure, kept):  # any weights make the same of them
        kept = None
        unseen = tuple(replace(entry, seen=None) for entry in structure.inputs)
        structure = replace(structure, inputs=unseen)
    if kept is None or (batch is not None and not has_batch(structure, kept, batch)):
        sizes = (_SAMPLES,) if small else (1, _SAMPLES)
        usual = next((size for size in sizes if takes_batch(structure, size)), None)
        kept = random_inputs(structure, batch or usual)
    if sum(tensor.numel() for tensor in kept) > _MOST_VALUES:
        return []
    # Where it takes no time: some faults show in a batch of one, in one that is larger, or at
    # other sizes than the example's.
    others = [
        size
        for size in (_OTHER_BATCHES if small and batch is None else ())
        if takes_batch(structure, size)
    ]
    smaller = smaller_inputs(structure) if others else None
    return [
        kept,
        *(random_inputs(structure, size, seed=size) for size in others),
        *([smaller] if smaller is not None else []),
    ]
