"""Weights for kernels that sum pairs of products in int16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from octavo.numerics.observers.base import Bounds, check_not_empty
from octavo.numerics.scheme import Scheme


@dataclass(frozen=True)
class Largest:
    """The two largest values and the two lowest ones, negated, both at least zero, float32
    ``[channels, 2]``.
    """

    positive: Tensor
    negative: Tensor
    per_channel: bool
    batches: int = 1


@dataclass(frozen=True)
class PairSum:
    """A range so wide that the two largest weights of one sign sum to its end.

    CPUs without VNNI add two products of uint8 and int8 in int16. With the end of the range at 127
    no two weights of one channel sum to more than 128 after rounding, and ``255 * 128`` fits: so
    activations can keep all of their eight bits. It costs weights at most one bit, and less where
    one weight stands out. For symmetric schemes.

    Example:
        >>> observer = PairSum()
        >>> state = observer.update(None, torch.tensor([0.5, 0.25, -0.125]), None)
        >>> observer.bounds(state, Scheme("int8", symmetric=True)).high.item()
        0.75
    """

    name: ClassVar[str] = "pair_sum"

    def update(self, state: Largest | None, x: Tensor, channel_axis: int | None) -> Largest:
        check_not_empty(x)
        rows = x.detach().to(torch.float32)
        per_channel = channel_axis is not None
        if channel_axis is not None:
            rows = rows.movedim(channel_axis, 0).flatten(1)
        rows = rows.reshape(rows.shape[0] if per_channel else 1, -1)
        new = Largest(_two_largest(rows), _two_lowest(rows), per_channel)
        return new if state is None else self.merge(state, new)

    def merge(self, one: Largest, other: Largest) -> Largest:
        return Largest(
            _two_largest(torch.cat([one.positive, other.positive], 1)),
            _two_largest(torch.cat([one.negative, other.negative], 1)),
            one.per_channel,
            one.batches + other.batches,
        )

    def bounds(self, state: Largest, scheme: Scheme) -> Bounds:
        end = torch.maximum(state.positive.sum(1), state.negative.sum(1))
        end = end if state.per_channel else end[0]
        return Bounds(-end, end, state.batches)

    def to_dict(self) -> dict[str, Any]:
        return {"observer": self.name}


def _two_largest(rows: Tensor) -> Tensor:
    """``[channels, 2]``, zero where there are fewer positive values."""
    return _at_least_zero(rows.topk(min(2, rows.shape[1]), dim=1).values)


def _two_lowest(rows: Tensor) -> Tensor:
    """The same of ``-rows``, which is not made."""
    return _at_least_zero(-rows.topk(min(2, rows.shape[1]), dim=1, largest=False).values)


def _at_least_zero(values: Tensor) -> Tensor:
    return functional.pad(values.clamp(min=0.0), (0, 2 - values.shape[1]))
