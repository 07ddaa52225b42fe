"""Gradients end at what is quantized: integers have none.

Tested in tests/model/test_model.py and tests/model/nn/test_linear.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import warn_user


def tell_where_gradients_end(module: nn.Module, name: str, given: Iterable[Any]) -> None:
    """Warn, in training, where an argument wants a gradient, which it will not get.

    Args:
        module: which is called, by its own ``forward``.
        name: what to call it.
        given: its arguments.
    """
    if module.training and torch.is_grad_enabled() and any(map(_wants_gradient, given)):
        warn_user(
            f"no gradient goes through {name}: what stands before it is not trained by what comes "
            "behind; keep it float, or train what stands behind it"
        )


def _wants_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad
