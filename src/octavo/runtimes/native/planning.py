"""The plan of a program: what each step reads and writes, and where that lies in memory.

A plan is made for inputs of certain sizes and strides. Values are tensors without memory, so that
torch itself says what becomes of their sizes and strides when they are only looked at differently.

Tested in tests/runtimes/native/test_program.py.
"""

from __future__ import annotations

import ctypes
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from octavo.runtimes.native import structs
from octavo.runtimes.native.convolution import OperandsStruct
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

    @property
    def order(self) -> tuple[int, ...] | None:
        """The axes from the slowest, where values stand beside each other in some order."""
        strides, sizes = self.tensor.stride(), self.tensor.shape
        # Axes of one value stand where they are counted if that is as good as elsewhere, or else in
        # front: so that the fastest axis has values, of which kernels take many at once.
        found = sorted(range(len(sizes)), key=lambda axis: (sizes[axis] != 1, -strides[axis]))
        usual = tuple(range(len(sizes)))
        return next((o for o in (usual, tuple(found)) if self.lies_in(o)), None)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its memory, in some order."""
        held = self.tensor.untyped_storage().nbytes()
        return self.tensor.nbytes == held and self.order is not None

    def lies_as(self, other: Value) -> bool:
        """Whether each value stands where the one of the same index does, counted in values."""
        return self.sizes == other.sizes and all(
            size == 1 or one == two
            for size, one, two in zip(
                self.sizes, self.tensor.stride(), other.tensor.stride(), strict=True
            )
        )

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
class Buffer:
    """Memory of some bytes, in use from one step to another.

    ``base`` is its place among the addresses of a call, where the caller gives it.
    """

    bytes: int
    first: int = sys.maxsize
    last: int = -1
    base: int | None = None
    made_as: Tensor | None = None
    offset: int = 0


@dataclass(frozen=True)
class PlannedStep:
    """A step before its values have places.

    Attributes:
        arguments: the struct of its kind, without pointers to values.
        reads, makes: pointers of that struct, a dot in front of those of a struct within, and what
            they point to.
        chunks: into how many it is cut.
    """

    kind: Kind
    arguments: ctypes.Structure
    reads: Mapping[str, Value]
    makes: Mapping[str, Value]
    chunks: int

    @property
    def values(self) -> Iterator[tuple[str, Value]]:
        yield from self.reads.items()
        yield from self.makes.items()


class Operation(ABC):
    """What a program does at one place, as data; sizes are found when they are known."""

    @abstractmethod
    def plan(self, planner: Planner, *values: Any) -> Any:
        """Append steps that make the result of values.

        Each is a `Value`, or a number, or a tuple of these; and so is the result.

        Raises:
            RuntimeError: sizes do not fit each other.
        """


@dataclass
class Planner:
    """Makes a plan, a step after the other.

    Attributes:
        threads: of a call.
        steps: what was planned so far.
        buffers: memory that these name by number.
    """

    threads: int
    steps: list[PlannedStep] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)

    def given(self, tensor: Tensor) -> Value:
        """A value that the caller gives: the next address of a call."""
        like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        base = 1 + sum(buffer.base is not None for buffer in self.buffers)
        self.buffers.append(Buffer(0, base=base))
        return Value(like, len(self.buffers) - 1)

    def new(self, sizes: Sequence[int], dtype: torch.dtype, order: Sequence[int]) -> Value:
        """A value of its own, the axes in this order in memory."""
        strides, stride = [0] * len(sizes), 1
        for axis in reversed(order):
            strides[axis] = stride
            stride *= max(1, sizes[axis])
        tensor = torch.empty_strided(tuple(sizes), strides, dtype=dtype, device="meta")
        self.buffers.append(Buffer(tensor.nbytes, made_as=tensor))
        return Value(tensor, len(self.buffers) - 1)

    def memory(self, bytes_: int) -> Value:
        """Memory for the steps that name it."""
        return self.new((bytes_,), torch.uint8, (0,))

    def step(
        self,
        kind: Kind,
        arguments: ctypes.Structure,
        reads: Mapping[str, Value],
        makes: Mapping[str, Value],
        chunks: int | None = None,
    ) -> None:
        """Append a step, unless there is nothing to make.

        Args:
            reads, makes: see `PlannedStep`.
            chunks: into how many it is cut, if not by the bytes that it reads and makes.
        """
        if not any(value.tensor.numel() for value in makes.values()):
            return
        if chunks is None:
            bytes_ = sum(value.tensor.nbytes for value in (*reads.values(), *makes.values()))
            chunks = self.chunks(bytes_ // CHUNK)
        self.steps.append(PlannedStep(kind, arguments, reads, makes, chunks))

    def chunks(self, parts: int) -> int:
        """Into how many chunks to cut so many parts, each of which is worth a thread's while."""
        return max(1, min(parts, CHUNKS_OF_A_THREAD * self.threads))

    def moved(self, x: Value, y: Value) -> None:
        """Write one value into the place of another of the same sizes."""
        sizes, from_, to = _joined_axes(x.tensor, y.tensor)
        move = structs.Move(
            sizes=structs.axes_of(sizes, 1),
            x_strides=structs.axes_of(from_, 0),
            y_strides=structs.axes_of(to, 0),
            bytes=x.tensor.element_size(),
        )
        self.step(Kind.MOVE, move, {"x": x}, {"y": y})

    def filled(self, y: Value, number: Tensor) -> None:
        """Write one number, which the caller keeps in memory, to each place of a value."""
        everywhere = number.to("meta").expand(y.sizes)
        sizes, from_, to = _joined_axes(everywhere, y.tensor)
        move = structs.Move(
            at=OperandsStruct(x=number.data_ptr()),
            sizes=structs.axes_of(sizes, 1),
            x_strides=structs.axes_of(from_, 0),
            y_strides=structs.axes_of(to, 0),
            bytes=y.tensor.element_size(),
        )
        self.step(Kind.MOVE, move, {}, {"y": y})

    def laid(self, value: Value, order: Sequence[int]) -> Value:
        """The value as it is, or in new memory, with the axes in this order."""
        if value.lies_in(order):
            return value
        result = self.new(value.sizes, value.tensor.dtype, order)
        self.moved(value, result)
        return result

    def finished(self, results: Sequence[Value], slicing: Slicing | None = None) -> Plan:
        """The plan that gives these results, which the caller gets in memory of their own.

        Args:
            slicing: how the first steps are taken, if not as all others are.
        """
        first = slicing.steps if slicing else 0
        self._find_lifetimes(self.steps, first)
        made: list[Made] = []
        bases = 1 + sum(buffer.base is not None for buffer in self.buffers)
        for value in results:
            buffer = self.buffers[value.buffer]
            if buffer.base is None:
                assert buffer.made_as is not None
                buffer.base = bases + len(made)
                like = buffer.made_as
                made.append((tuple(like.shape), like.stride(), like.dtype))
        arena = _placed([b for b in self.buffers if b.base is None and b.last >= first])
        views = [self._view(value, bases) for value in results]
        slices = None
        if slicing:
            slices = slicing.part._finished_slice(self, slicing, bases + len(made))
        return Plan(self._as_structs(self.steps[first:]), arena, made, views, slices)

    def _finished_slice(self, whole: Planner, slicing: Slicing, bases: int) -> Slices:
        """With this plan of one slice: what steps behind the sliced ones read is in memory of the
        whole plan.
        """
        steps = self.steps[: slicing.steps]
        self._find_lifetimes(steps, 0)
        pitches, kept = [0] * bases, list[int]()
        for own, other, pitch in zip(self.buffers, whole.buffers, slicing.pitches, strict=False):
            own.base = other.base
            if own.base is not None:
                pitches[own.base] = pitch or 0
            elif own.last >= 0 and other.last >= slicing.steps:
                own.base = bases + len(kept)
                kept.append(other.offset)
                pitches.append(pitch or 0)
        arena = _placed([b for b in self.buffers if b.base is None and b.last >= 0])
        return Slices(self._as_structs(steps), slicing.slices, _aligned(arena), pitches, kept)

    def _find_lifetimes(self, steps: Sequence[PlannedStep], first: int) -> None:
        """Steps before the first count as one."""
        for now, step in enumerate(steps):
            for _, value in step.values:
                buffer, at = self.buffers[value.buffer], max(now, first - 1)
                buffer.first, buffer.last = min(buffer.first, at), at

    def _as_structs(self, steps: Sequence[PlannedStep]) -> ctypes.Array[structs.Step]:
        return (structs.Step * len(steps))(*map(self._as_struct, steps))

    def _view(self, value: Value, bases: int) -> View:
        buffer = self.buffers[value.buffer]
        assert buffer.base is not None
        tensor, whole = value.tensor, buffer.made_as
        as_made = whole is not None and (tensor.shape, tensor.stride()) == (
            whole.shape,
            whole.stride(),
        )
        place = (tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))
        return View(buffer.base - 1, None if as_made else place)

    def _as_struct(self, step: PlannedStep) -> structs.Step:
        of, member = structs.Of(), structs.Of._fields_[step.kind]
        setattr(of, member[0], step.arguments)
        places = [self._place(value, member[1], name) for name, value in step.values]
        missing = structs.MOST_PLACES - len(places)
        return structs.Step(
            kind=step.kind,
            chunks=step.chunks,
            places=structs.Places(*places, *[structs.Place(-1, 0, 0)] * missing),
            of=of,
        )

    def _place(self, value: Value, struct: type, name: str) -> structs.Place:
        buffer = self.buffers[value.buffer]
        offset = int(value.tensor.storage_offset()) * value.tensor.element_size()
        field_ = structs.offset_of(struct, name)
        return structs.Place(buffer.base or 0, buffer.offset + offset, field_)


@dataclass(frozen=True)
class View:
    """A result: the memory that it is in, counted over what is given and what is made, and how it
    lies there; ``None`` where that is as the memory was made.
    """

    memory: int
    place: tuple[tuple[int, ...], tuple[int, ...], int] | None


@dataclass(frozen=True, eq=False)
class Slicing:
    """How a batch is cut into slices for the first steps of its plan.

    Attributes:
        part: the plan of a slice.
        steps: how many are taken slice by slice.
        slices: how many there are.
        pitches: of each buffer, bytes from a slice to the next; ``None`` for scratch memory.
    """

    part: Planner
    steps: int
    slices: int
    pitches: list[int | None]


@dataclass(frozen=True, eq=False)
class Slices:
    """Steps that a thread takes with one slice of a batch before it takes the next.

    Attributes:
        steps: of a slice.
        count: of slices.
        arena: bytes of memory that each thread needs for itself.
        pitches: of each address, bytes from a slice to the next: of the arena, of what is given and
            made, and of what is kept.
        kept: values for later steps: where they begin in the arena of these.
    """

    steps: ctypes.Array[structs.Step]
    count: int
    arena: int
    pitches: list[int]
    kept: list[int]


@dataclass(frozen=True, eq=False)
class Plan:
    """A program for inputs of certain sizes.

    Attributes:
        steps: what is run, behind the slices.
        arena: bytes of memory that a call needs for itself.
        made: the tensors that a call makes.
        results: what it gives.
        slices: what is run first.
    """

    steps: ctypes.Array[structs.Step]
    arena: int
    made: list[Made]
    results: list[View]
    slices: Slices | None = None


def _placed(buffers: Sequence[Buffer]) -> int:
    """Offsets for buffers, of which those that are in use at once lie beside each other.

    The largest come first, each at the lowest place that is free for its time.
    """
    placed: list[Buffer] = []
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
