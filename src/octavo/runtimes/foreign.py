"""What the runtimes of other libraries share: memory that is torch's and theirs at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.errors import InputError, RuntimeUnavailable
from octavo.graph import Graph, TensorMeta


def check_device(runtime: str, device: torch.device) -> None:
    """Refuse models that are not on the CPU.

    Raises:
        RuntimeUnavailable: it is elsewhere.
    """
    if device.type != "cpu":
        raise RuntimeUnavailable(
            f"the {runtime} runtime runs on the CPU, the model is on {device}; "
            'use .lower("reference") there, or .to("cpu") first'
        )


def check_batch(tensors: Sequence[Tensor], batch: int | None) -> None:
    """Refuse another batch size than the one a model was made for.

    Raises:
        InputError: it differs.
    """
    found = tensors[0].shape[0] if tensors and tensors[0].dim() else batch
    if batch is not None and found != batch:
        raise InputError(
            f"the batch has {found} samples, the model was lowered with batch={batch}; "
            "lower it without batch for any size"
        )


def as_array(tensor: Tensor) -> Any:
    """A tensor's own memory as a numpy array; copied only where it is not contiguous."""
    return tensor.detach().contiguous().numpy()


@dataclass(frozen=True)
class OutputShapes:
    """The results' shapes, as far as the inputs' shapes tell them.

    Attributes:
        metas: of each result.
        source: input and axis that the one open size of all of them comes from; ``None`` where
            there is none, or several.
    """

    metas: tuple[TensorMeta | None, ...]
    source: tuple[int, int] | None

    @classmethod
    def of(cls, graph: Graph) -> OutputShapes:
        """From a graph whose inputs have one open size, the batch, in their first axis."""
        metas = graph.metas()
        opened = [
            (index, axis)
            for index, given in enumerate(graph.inputs)
            for axis, size in enumerate(given.meta.shape)
            if size is None
        ]
        batch = opened[0] if opened and all(axis == 0 for _, axis in opened) else None
        return cls(tuple(metas.get(name) for name in graph.output_names()), batch)

    def empty(self, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """Memory for each result; ``None`` where its shape is not known before."""
        batch = None if self.source is None else tensors[self.source[0]].shape[self.source[1]]
        return [self._empty(meta, batch) for meta in self.metas]

    def _empty(self, meta: TensorMeta | None, batch: int | None) -> Tensor | None:
        if meta is None or not meta.shape or None in meta.shape[1:]:
            return None
        first = meta.shape[0] if meta.shape[0] is not None else batch
        if first is None:
            return None
        sizes = [first, *(size for size in meta.shape[1:] if size is not None)]
        return torch.empty(sizes, dtype=getattr(torch, meta.dtype))
