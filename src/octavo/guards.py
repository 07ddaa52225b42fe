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


def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> None:
    """The kernels read from where offsets and indices say, and count on a bag."""
    if weight.dim() != 2 or indices.dim() != 1 or offsets.dim() != 1 or mode not in (0, 1, 2):
        raise ValueError("a table, indices or offsets of other axes, or another mode")
    if per_sample_weights is not None and per_sample_weights.shape != indices.shape:
        raise ValueError("not one weight for each index")
    if len(offsets) <= include_last_offset:
        raise ValueError(f"{len(offsets)} offsets make no bag")
    if weight.is_meta:
        return
    places = [0, *offsets.tolist(), len(indices)]
    if places != sorted(places):
        raise ValueError("offsets that are not in order, or beyond the indices")
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(weight):
        raise ValueError(f"indices beyond a table of {len(weight)} rows")


# By the names that a graph gives them.
GUARDS: Mapping[str, Callable[..., None]] = {
    "aten._weight_norm.default": _weight_norm,
    "aten.embedding_bag.default": _embedding_bag,
    "aten.embedding_bag.padding_idx": _embedding_bag,
}
