"""The operations of native programs that put values elsewhere: rolls and paddings, as data.

Tested in tests/runtimes/native/test_moves.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from torch import Tensor

from octavo.runtimes.native.operations import order_of
from octavo.runtimes.native.planning import Operation, Planner, Value


@dataclass(frozen=True, eq=False)
class Roll(Operation):
    """Values moved along some axes; those that leave at one end come in at the other.

    Attributes:
        shifts: by axis, towards higher indices.
    """

    shifts: Mapping[int, int]

    def plan(self, planner: Planner, *values: Value) -> Value:
        (x,) = values
        rank = x.tensor.dim()
        if any(not -rank <= axis < rank for axis in self.shifts):
            raise RuntimeError(f"{x.sizes} is rolled along the axes {list(self.shifts)}")
        shifts: dict[int, int] = {}
        for axis, shift in self.shifts.items():  # one axis may have two names
            shifts[axis % rank] = shifts.get(axis % rank, 0) + shift
        y = planner.new(x.sizes, x.tensor.dtype, order_of(x))
        # Along each axis two pieces: as many from its front as stay in front of the rest.
        pieces = [_pieces(x.sizes[axis], shift) for axis, shift in shifts.items()]
        for piece in product(*pieces):
            from_, to = x.tensor, y.tensor
            for axis, (start, target, count) in zip(shifts, piece, strict=True):
                from_, to = from_.narrow(axis, start, count), to.narrow(axis, target, count)
            planner.moved(Value(from_, x.buffer), Value(to, y.buffer))
        return y


def _pieces(size: int, shift: int) -> list[tuple[int, int, int]]:
    """Where each piece of an axis starts, where it goes, and how long it is."""
    over = shift % max(1, size)  # so many leave at the end
    return [(0, over, size - over), (size - over, 0, over)] if over else [(0, 0, size)]


@dataclass(frozen=True, eq=False)
class Pad(Operation):
    """One number around a tensor.

    Attributes:
        amounts: before and behind, of the last axis first, as torch has them; none is below 0.
        number: of the tensor's type, without axes.
    """

    amounts: Sequence[int]
    number: Tensor

    def plan(self, planner: Planner, *values: Value) -> Value:
        (x,) = values
        rank, sizes = x.tensor.dim(), list(x.sizes)
        if len(self.amounts) > 2 * rank or x.tensor.dtype != self.number.dtype:
            raise RuntimeError(f"{x.sizes} is padded by {list(self.amounts)}")
        around = list(zip(self.amounts[::2], self.amounts[1::2], strict=True))[::-1]
        axes = range(rank - len(around), rank)
        for axis, (before, behind) in zip(axes, around, strict=True):
            sizes[axis] += before + behind
        y = planner.new(sizes, x.tensor.dtype, order_of(x))
        if math.prod(sizes) > x.tensor.numel():
            planner.filled(y, self.number)
        inner = y.tensor
        for axis, (before, _) in zip(axes, around, strict=True):
            inner = inner.narrow(axis, before, x.sizes[axis])
        planner.moved(x, Value(inner, y.buffer))
        return y
