"""Operators whose kernels trust their arguments: here they are checked at every call.

A graph's shapes are checked when it is loaded, at the sizes it was captured with. Other sizes and
the values in tensors are only known when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Guarded:
    """An operator that first looks at its arguments, given as the operator takes them."""

    overload: Any
    check: Callable[..., None]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.check(*args, **kwargs)
        return self.overload(*args, **kwargs)

    @property
    def _schema(self) -> Any:
        return self.overload._schema


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> None:
    """The kernel writes a norm for each slice of ``v`` into memory of the size of ``g``."""
    expected = [size if axis == dim else 1 for axis, size in enumerate(v.shape)]
    if list(g.shape) != expected or v.dtype != g.dtype:
        raise ValueError(f"a norm of shape {list(g.shape)} where {expected} is due")


# By the names that a graph gives them.
GUARDS: Mapping[str, Callable[..., None]] = {"aten._weight_norm.default": _weight_norm}
