"""The plan of a program: what each step reads and writes, and where that lies in memory.

A plan is made for inputs of certain sizes and strides. Values are tensors without memory, so that
torch itself says what becomes of their sizes and strides when they are only looked at differently.

Tested in tests/runtimes/native/test_program.py.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from octavo.runtimes.native import structs
from octavo.runtimes.native.structs import Kind

ALIGNMENT = 64
CHUNK = 2**13  # bytes that are worth another thread's while
CHUNKS_OF_A_THREAD = 8
# Sizes, strides and type of a tensor.
Made = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
CHANNELS_LAST = (0, 2, 3, 1)  # the axes of an image, from the slowest


@dataclass(frozen=True, eq=False)
class Value:
    """A value of a program.

    Attributes:
        tensor: on the meta device: its sizes, strides, type, and offset in the buffer.
        buffer: the number of the memory that it is in.
    """

    tensor: Tensor
    buffer: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def lies_in(self, order: Sequence[int]) -> bool:
        """Whether values stand beside each other, with the axes in this order."""
        expected = 1
        for axis in reversed(order):
            size = self.tensor.shape[axis]
            if size != 1 and self.tensor.stride(axis) != expected:
                return False
            expected *= size
        return True


@dataclass
class _Buffer:
    """Memory of some bytes, in use from one step to another.

    ``base`` is its place among the addresses of a call, where the caller gives it.
    """

    bytes: int
    first: int
    last: int
    base: int | None = None
    made_as: Tensor | None = None
    offset: int = 0


@dataclass(frozen=True)
class _Step:
    kind: Kind
    arguments: ctypes.Structure
    x: Value
    y: Value
    other: Value | None
    scratch: int | None  # a buffer
    chunks: int


class Operation(ABC):
    """What a program does at one place, as data; sizes are found when they are known."""

    @abstractmethod
    def plan(self, planner: Planner, *values: Value) -> Value:
        """Append steps that make the result of values.

        Raises:
            RuntimeError: sizes do not fit each other.
        """


@dataclass
class Planner:
    """Makes a plan, a step after the other.

    Attributes:
        threads: of a call.
    """

    threads: int
    _buffers: list[_Buffer] = field(default_factory=list)
    _steps: list[_Step] = field(default_factory=list)

    def given(self, tensor: Tensor) -> Value:
        """A value that the caller gives: the next address of a call."""
        like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        base = 1 + sum(buffer.base is not None for buffer in self._buffers)
        self._buffers.append(_Buffer(0, 0, 0, base))
        return Value(like, len(self._buffers) - 1)

    def new(self, sizes: Sequence[int], dtype: torch.dtype, order: Sequence[int]) -> Value:
        """A value of its own, the axes in this order in memory."""
        strides, stride = [0] * len(sizes), 1
        for axis in reversed(order):
            strides[axis] = stride
            stride *= max(1, sizes[axis])
        tensor = torch.empty_strided(tuple(sizes), strides, dtype=dtype, device="meta")
        now = len(self._steps)
        self._buffers.append(_Buffer(tensor.nbytes, now, now, made_as=tensor))
        return Value(tensor, len(self._buffers) - 1)

    def scratch(self, bytes_: int) -> int | None:
        """Memory for the next step alone."""
        if not bytes_:
            return None
        now = len(self._steps)
        self._buffers.append(_Buffer(bytes_, now, now))
        return len(self._buffers) - 1

    def step(
        self,
        kind: Kind,
        arguments: ctypes.Structure,
        x: Value,
        y: Value,
        other: Value | None = None,
        scratch: int | None = None,
        chunks: int | None = None,
    ) -> None:
        """Append a step, unless there is nothing to make.

        ``chunks`` is into how many it is cut, if not by the bytes that it reads and writes.
        """
        if y.tensor.numel() == 0:
            return
        bytes_ = x.tensor.nbytes + y.tensor.nbytes
        chunks = chunks or max(1, min(bytes_ // CHUNK, CHUNKS_OF_A_THREAD * self.threads))
        now = len(self._steps)
        read = [value.buffer for value in (x, y, other) if value is not None]
        for buffer in (*read, *([] if scratch is None else [scratch])):
            self._buffers[buffer].last = now
        self._steps.append(_Step(kind, arguments, x, y, other, scratch, chunks))

    def moved(self, x: Value, y: Value) -> None:
        """Write one value into the place of another of the same sizes."""
        sizes, from_, to = _joined_axes(x.tensor, y.tensor)
        move = structs.Move(
            sizes=structs.axes_of(sizes, 1),
            x_strides=structs.axes_of(from_, 0),
            y_strides=structs.axes_of(to, 0),
            bytes=x.tensor.element_size(),
        )
        self.step(Kind.MOVE, move, x, y)

    def laid(self, value: Value, order: Sequence[int]) -> Value:
        """The value as it is, or in new memory, with the axes in this order."""
        if value.lies_in(order):
            return value
        result = self.new(value.sizes, value.tensor.dtype, order)
        self.moved(value, result)
        return result

    def finished(self, results: Sequence[Value]) -> Plan:
        """The plan that gives these results, which the caller gets in memory of their own."""
        made: list[Made] = []
        bases = 1 + sum(buffer.base is not None for buffer in self._buffers)
        for value in results:
            buffer = self._buffers[value.buffer]
            if buffer.base is None:
                assert buffer.made_as is not None
                buffer.base = bases + len(made)
                like = buffer.made_as
                made.append((tuple(like.shape), like.stride(), like.dtype))
        arena = _placed([buffer for buffer in self._buffers if buffer.base is None])
        steps = (structs.Step * len(self._steps))(*map(self._as_struct, self._steps))
        views = [self._view(value, bases) for value in results]
        return Plan(steps, arena, made, views)

    def _view(self, value: Value, bases: int) -> View:
        buffer = self._buffers[value.buffer]
        assert buffer.base is not None
        tensor, whole = value.tensor, buffer.made_as
        as_made = whole is not None and (tensor.shape, tensor.stride()) == (
            whole.shape,
            whole.stride(),
        )
        place = (tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))
        return View(buffer.base - 1, None if as_made else place)

    def _as_struct(self, step: _Step) -> structs.Step:
        places = {name: self._place(getattr(step, name)) for name in ("x", "y", "other")}
        scratch = structs.Place(-1, 0)
        if step.scratch is not None:
            scratch = structs.Place(0, self._buffers[step.scratch].offset)
        of = structs.Of()
        setattr(of, structs.Of._fields_[step.kind][0], step.arguments)
        return structs.Step(kind=step.kind, chunks=step.chunks, of=of, scratch=scratch, **places)

    def _place(self, value: Value | None) -> structs.Place:
        if value is None:
            return structs.Place(-1, 0)
        buffer = self._buffers[value.buffer]
        offset = int(value.tensor.storage_offset()) * value.tensor.element_size()
        return structs.Place(buffer.base or 0, buffer.offset + offset)


@dataclass(frozen=True)
class View:
    """A result: the memory that it is in, counted over what is given and what is made, and how it
    lies there; ``None`` where that is as the memory was made.
    """

    memory: int
    place: tuple[tuple[int, ...], tuple[int, ...], int] | None


@dataclass(frozen=True, eq=False)
class Plan:
    """A program for inputs of certain sizes.

    Attributes:
        steps: what is run.
        arena: bytes of memory that a call needs for itself.
        made: the tensors that a call makes.
        results: what it gives.
    """

    steps: ctypes.Array[structs.Step]
    arena: int
    made: list[Made]
    results: list[View]


def _placed(buffers: Sequence[_Buffer]) -> int:
    """Offsets for buffers, of which those that are in use at once lie beside each other.

    The largest come first, each at the lowest place that is free for its time.
    """
    placed: list[_Buffer] = []
    end = 0
    for buffer in sorted(buffers, key=lambda b: -b.bytes):
        offset = 0
        overlapping = (b for b in placed if b.first <= buffer.last and buffer.first <= b.last)
        for other in sorted(overlapping, key=lambda b: b.offset):
            if offset + buffer.bytes <= other.offset:
                break
            offset = max(offset, _aligned(other.offset + other.bytes))
        buffer.offset = offset
        placed.append(buffer)
        end = max(end, offset + buffer.bytes)
    return end


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _joined_axes(x: Tensor, y: Tensor) -> tuple[list[int], list[int], list[int]]:
    """Sizes and both strides, the axes from the slowest of ``y``, neighbours joined to one axis
    where values of both lie in one row over them.
    """
    strides = y.stride()
    axes = sorted(range(y.dim()), key=lambda axis: (-strides[axis], axis))
    sizes, from_, to = [1], [1], [1]
    for axis in axes:
        size, one, other = y.shape[axis], x.stride(axis), y.stride(axis)
        if size == 1:
            continue
        if from_[-1] == one * size and to[-1] == other * size:
            sizes[-1] *= size
            from_[-1], to[-1] = one, other
        else:
            sizes, from_, to = [*sizes, size], [*from_, one], [*to, other]
    if len(sizes) > structs.MOST_AXES:
        raise RuntimeError(f"values of {len(sizes)} axes are moved")
    return sizes, from_, to
