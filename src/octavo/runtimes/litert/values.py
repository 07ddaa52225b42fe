"""What a tensor of the file is: its shape, its numbers, and the order of its axes.

Tested in tests/runtimes/litert/test_export.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from octavo.runtimes.litert.flatbuffer import Quantization

T = TypeVar("T")


@dataclass(frozen=True)
class Form:
    """The numbers of a tensor: their type, and what integers mean."""

    dtype: str
    quantization: Quantization | None = None

    @property
    def scale(self) -> float:
        """The one scale of a tensor's integers."""
        assert self.quantization is not None
        return self.quantization.scales[0]

    @property
    def zero_point(self) -> int:
        """The one zero point of a tensor's integers."""
        assert self.quantization is not None
        return self.quantization.zero_points[0]


FLOAT = Form("float32")


@dataclass(frozen=True)
class Value:
    """A tensor of the file.

    Attributes:
        index: its number.
        shape: as the file has it.
        form: its numbers.
        last: whether its channels, which are the second axis in the graph, are the last one here.
    """

    index: int
    shape: tuple[int, ...]
    form: Form
    last: bool = False

    def axis(self, axis: int) -> int:
        """Where an axis of the graph's tensor is."""
        axis %= len(self.shape)
        if not self.last or axis == 0:
            return axis
        return len(self.shape) - 1 if axis == 1 else axis - 1


@dataclass(frozen=True)
class Made:
    """An operator of the file that gives the integers of a rounding.

    Attributes:
        kind: the schema's name.
        inputs: what it reads; ``None`` for one that is left out.
        result: what it gives.
        low, high: the range of the integers.
    """

    kind: str
    inputs: tuple[Value | None, ...]
    result: Value
    low: int
    high: int

    def read(self, place: int) -> Value:
        """One of its inputs."""
        value = self.inputs[place]
        assert value is not None
        return value


def channels_last(sizes: Sequence[T]) -> tuple[T, ...]:
    """One entry an axis, in the order of a tensor whose channels are the last axis."""
    return (sizes[0], *sizes[2:], sizes[1])


def channels_second(sizes: Sequence[T]) -> tuple[T, ...]:
    """The inverse of `channels_last`."""
    return (sizes[0], sizes[-1], *sizes[1:-1])
