"""What the runtimes of other libraries share: memory that is torch's and theirs at once.

Tested in tests/runtimes/test_foreign_runtimes.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from octavo.errors import InputError


def check_batch(tensors: Sequence[Tensor], batch: int | None) -> None:
    """Refuse another batch size than the one a model was made for.

    Raises:
        InputError: it differs.
    """
    samples = tensors[0].shape[0] if tensors and tensors[0].dim() else batch
    if batch is not None and samples != batch:
        raise InputError(
            f"the batch has {samples} samples, the model was lowered with batch={batch}; "
            "lower it without batch for any size"
        )


def as_array(tensor: Tensor) -> Any:
    """A tensor's own memory as a numpy array; copied only where it is not contiguous."""
    return tensor.detach().contiguous().numpy()
