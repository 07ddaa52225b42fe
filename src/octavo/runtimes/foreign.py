"""What the runtimes of other libraries share: memory that is torch's and theirs at once.

Tested in tests/runtimes/test_foreign_runtimes.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from octavo.errors import InputError
from octavo.graph.graph import Graph
from octavo.graph.open_sizes import has_batch


def check_batch(graph: Graph, tensors: Sequence[Tensor], batch: int | None) -> None:
    """Refuse another batch size than the one a model was made for.

    Raises:
        InputError: it differs.
    """
    if batch is not None and not has_batch(graph, tensors, batch):
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
        raise InputError(
            f"the inputs are {shapes}, the model was lowered with batch={batch}; lower it without "
            "batch for any size"
        )


def as_array(tensor: Tensor) -> Any:
    """A tensor's own memory as a numpy array; copied only where it is not contiguous.

    Raises:
        RuntimeError: it is not the CPU's memory.
    """
    if not tensor.is_cpu:
        raise RuntimeError(f'an input is on {tensor.device}: give it x.to("cpu")')
    return tensor.detach().contiguous().numpy()
