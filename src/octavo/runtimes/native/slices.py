"""Batches image by image: a thread takes one through many steps before it takes the next one.

What a step made is then still in its core's cache when the next step reads it, and no thread waits
for another. Weights are read once for each image; so layers whose weights are larger than what they
read and make, which stand at the end of networks, are left to all threads together.

Steps do not say which images they are about. So one image is planned by itself, and a step of the
whole batch has to be that of the image, repeated over all of its memory.

Tested in tests/runtimes/native/test_slices.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from octavo.runtimes.native.planning import PlannedStep, Planner, Slicing, Value
from octavo.runtimes.native.structs import Kind

Given = Sequence[Tensor | int]
LEAST_OF_A_THREAD = 2  # images: one that begins late has done some of its own
MOST_IDLE = 1.1  # of the time, at the end, where images are no multiple of threads
CACHE = 2**19  # bytes of a core's own for what a step reads and makes

# What a step does so many times, each time with the values that follow.
COUNTS = {
    Kind.CONVOLVE: ("input.batch", "output.batch"),
    Kind.POOL: ("input.batch", "output.batch"),
    Kind.DEQUANTIZE: ("count",),
    Kind.LOOK_UP: ("count",),
    Kind.NORMALIZE: ("count",),
    Kind.ADD_UP: ("outer",),
    Kind.GATHER: ("count",),
    Kind.PACK_HEADS: ("batch",),
    Kind.ATTEND: ("batch",),
    Kind.ROUND_ROWS: ("count",),
    Kind.MULTIPLY_ROWS: ("count",),
    Kind.ACTIVATE: ("count",),
    Kind.PACK_FLOAT_HEADS: ("batch",),
    Kind.ATTEND_TO_FLOATS: ("batch",),
}
AXES = {Kind.MOVE: "sizes", Kind.QUANTIZE: "shape", Kind.COMBINE: "shape", Kind.CALCULATE: "shape"}
STRIDES = {"x": "x_strides", "other": "other_strides", "y": "y_strides"}
OF_HEADS = {
    "q.values": "q.batch_stride",
    "k.values": "k.batch_stride",
    "v.values": "v.batch_stride",
    "mask": "mask_batch_stride",
    "out": "out_batch_stride",
}
SCRATCH = ("scratch", "memory")  # no values
OF_THREADS = "workers"  # a field that says how many there are


def sliced(
    planned: Callable[[Planner, Given], object], given: Given, whole: Planner
) -> Slicing | None:
    """How the first steps of a plan are better taken image by image; ``None`` if they are not.

    Args:
        planned: plans the same for other inputs.
        given: the inputs.
        whole: the plan of all of them.
    """
    batch = next((len(x) for x in given if isinstance(x, Tensor) and x.dim()), 0)
    if not _is_even(batch, whole.threads):
        return None
    first, part = [_first(x, batch) for x in given], Planner(threads=1)
    try:
        planned(part, first)
    except (RuntimeError, IndexError, ValueError):  # it was no batch
        return None
    slicing = Slicing(part, 0, batch, _pitches(given, first, batch, whole, part))
    together = sum(_cost(step, batch)[1] for step in whole.steps)
    cuts = _cuts(slicing, whole)
    cost, steps = min(cuts, default=(together, 0))
    return replace(slicing, steps=steps) if cost < together else None


def _is_even(batch: int, threads: int) -> bool:
    """Whether threads have enough images, and are done at about the same time."""
    rounds = -(-batch // threads)
    enough = batch >= max(2, LEAST_OF_A_THREAD * threads)
    return enough and rounds * threads <= MOST_IDLE * batch


def _first(x: Tensor | int, batch: int) -> Tensor | int:
    """The first image of an input. What only looks like a batch will not fit the other plan."""
    if isinstance(x, Tensor):
        return x[:1] if x.dim() and len(x) == batch else x
    return 1 if x == batch else x


def _pitches(
    given: Given, first: Given, batch: int, whole: Planner, part: Planner
) -> list[int | None]:
    """How many bytes an image's values stand behind those of the one before, in each buffer;
    ``None`` for scratch memory. As far as both plans are alike they number buffers alike.
    """
    of_given = [
        0 if one.shape == other.shape else one.stride(0) * one.element_size()
        for one, other in zip(given, first, strict=True)
        if isinstance(one, Tensor) and isinstance(other, Tensor)
    ]
    pitches: list[int | None] = []
    names = ((name, value) for step in whole.steps for name, value in step.values)
    scratch = {value.buffer for name, value in names if name in SCRATCH}
    for index, (one, other) in enumerate(zip(whole.buffers, part.buffers, strict=False)):
        if one.base is not None:
            pitches.append(of_given[one.base - 1])
        else:
            is_batch = one.bytes == batch * other.bytes and index not in scratch
            pitches.append(other.bytes if is_batch else None)
    return pitches


# ---- where to leave off ----


def _cuts(slicing: Slicing, whole: Planner) -> Iterator[tuple[int, int]]:
    """Each number of first steps that can be taken image by image, behind the bytes that all steps
    read and make then, but for what is in a core's cache.
    """
    steps, costs = whole.steps, [_cost(step, slicing.slices) for step in whole.steps]
    touched = [{value.buffer for _, value in step.values} for step in steps]
    for count, step in enumerate(steps, 1):
        if not _is_repeated(step, slicing, count - 1):
            return
        crossing = set().union(*touched[:count]) & set().union(*touched[count:])
        if all(slicing.pitches[buffer] is not None for buffer in crossing):
            yield sum(one for one, _ in costs[:count]) + sum(two for _, two in costs[count:]), count


def _cost(step: PlannedStep, images: int) -> tuple[int, int]:
    """Of a step that is taken image by image, and of one that is not."""
    values = sum(value.tensor.nbytes for name, value in step.values if name not in SCRATCH)
    weights = 0
    if step.kind is Kind.CONVOLVE:
        of = step.arguments
        window = of.kernel_height * of.kernel_width * of.input.channels // of.groups
        weights = window * of.output.channels
    elif step.kind is Kind.MULTIPLY_ROWS:
        weights = step.arguments.matrix.rows * step.arguments.matrix.columns
    return images * weights + (values if values > images * CACHE else 0), weights + values


# ---- whether a step is that of an image, repeated ----


@dataclass(frozen=True)
class _Repetition:
    """What a step does, and how often, one behind the other.

    Attributes:
        count: how often.
        strides: in values, from one to the next, of operands that do not stand side by side.
        rest: all else that is said of it.
    """

    count: int
    strides: dict[str, int | None]
    rest: dict[str, Any]


def _is_repeated(step: PlannedStep, slicing: Slicing, index: int) -> bool:
    """Whether a step does with each image what that of the image does."""
    if index >= len(slicing.part.steps):
        return False
    of_image = slicing.part.steps[index]
    one, other = dict(step.values), dict(of_image.values)
    if step.kind is not of_image.kind or one.keys() != other.keys():
        return False
    axis = _outer_axis(step)
    whole, part = _repetition(step, axis), _repetition(of_image, axis)
    if whole.count != slicing.slices * part.count or whole.rest != part.rest:
        return False
    return all(
        one[name].buffer == other[name].buffer
        and (name in SCRATCH or _follows(name, one[name], other[name], whole, part, slicing))
        for name in one
    )


def _follows(
    name: str, one: Value, other: Value, whole: _Repetition, part: _Repetition, slicing: Slicing
) -> bool:
    """Whether what a step's repetitions read or make of an image stands where that image does."""
    offset, stride = other.tensor.storage_offset(), whole.strides.get(name)
    if one.tensor.storage_offset() != offset:
        return False
    pitch = slicing.pitches[one.buffer]
    if stride is None:
        return offset == 0 and pitch == other.tensor.nbytes
    if part.count > 1 and part.strides[name] != stride:
        return False
    return pitch == stride * part.count * one.tensor.element_size()


def _outer_axis(step: PlannedStep) -> int:
    """Of a step over axes: the first that has more than one value."""
    sizes = _sizes(step)
    return next((axis for axis, size in enumerate(sizes) if size != 1), 0)


def _sizes(step: PlannedStep) -> list[int]:
    if step.kind not in AXES:
        return []
    return list(_fields(getattr(step.arguments, AXES[step.kind])).values())


def _repetition(step: PlannedStep, axis: int) -> _Repetition:
    rest, strides = _fields(step.arguments), {}
    rest.pop(OF_THREADS, None)
    if step.kind in COUNTS:
        count = {rest.pop(name) for name in COUNTS[step.kind]}.pop()
        if "q.batch_stride" in rest:
            strides = {name: rest.pop(field) for name, field in OF_HEADS.items()}
        return _Repetition(count, strides, rest)
    sizes, names = _sizes(step), _fields(step.arguments)
    prefix = AXES[step.kind] + "."
    rest = {name: value for name, value in names.items() if not name.startswith(prefix)}
    rest["sizes"] = [size for at, size in enumerate(sizes) if at != axis]
    for operand, field in STRIDES.items():
        if hasattr(step.arguments, field):
            along = list(getattr(step.arguments, field))
            strides[operand] = along[axis]
            for at in range(len(along)):
                del rest[f"{field}.{at}"]
            rest[field] = [
                stride for at, stride in enumerate(along) if at != axis and sizes[at] != 1
            ]
    return _Repetition(sizes[axis], strides, rest)


def _fields(struct: Any, prefix: str = "") -> dict[str, Any]:
    """All numbers of a struct or an array, and of those within."""
    names = (
        [(name, getattr(struct, name)) for name, *_ in struct._fields_]
        if isinstance(struct, ctypes.Structure)
        else list(enumerate(struct))
    )
    found: dict[str, Any] = {}
    for name, value in names:
        if isinstance(value, ctypes.Structure | ctypes.Array):
            found |= _fields(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
