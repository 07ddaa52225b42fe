"""The operations of native programs: layers on uint8, as data.

Images are ``[batch, channels, height, width]`` and stand in channels-last order in memory.

Tested in tests/runtimes/native/test_operations.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import map_refs
from octavo.runtimes.integers import Integers
from octavo.runtimes.native import structs
from octavo.runtimes.native.convolution import Convolution, ShapeStruct, chunks, scratch_size
from octavo.runtimes.native.planning import CHANNELS_LAST, Operation, Planner, Value
from octavo.runtimes.native.structs import IntegersStruct, Kind
from octavo.runtimes.native.windows import Windows

SEQUENCES = (0, 2, 1)  # the axes of sequences whose channels stand side by side, from the slowest


@dataclass(frozen=True, eq=False)
class Layer(Operation):
    """A convolution of images or of sequences, which are images of height 1; or with ``rows`` a
    linear layer on the last axis.
    """

    convolution: Convolution
    rows: bool = False

    def plan(self, planner: Planner, *values: Value) -> Value:
        of_images = CHANNELS_LAST if len(values[0].sizes) == 4 else SEQUENCES
        order = order_of_rows(values[0]) if self.rows else of_images
        x, *addends = (planner.laid(value, order) for value in values)
        image, sizes = self._sizes(x)
        if any(addend.sizes != sizes for addend in addends):
            raise RuntimeError(f"{addends[0].sizes} is added to {sizes}")
        is_float = self.convolution.epilogue.out_scale == 0
        y = planner.new(sizes, torch.float32 if is_float else torch.uint8, order)
        convolved(planner, self.convolution, image, x, y, *addends)
        # No order of sequences but the usual one has a name, which who reads floats may count on.
        return planner.laid(y, range(3)) if is_float and order == SEQUENCES else y

    def _sizes(self, x: Value) -> tuple[tuple[int, int, int], tuple[int, ...]]:
        """Batch, height and width for the kernel, and the sizes of the result.

        Raises:
            RuntimeError: the layer does not take such an input.
        """
        geometry = self.convolution.geometry
        if self.rows:
            *outer, channels = x.sizes
            image, sizes = (math.prod(outer), 1, 1), (*outer, geometry.out_channels)
        else:
            batch, channels, *size = x.sizes
            height, width = size if len(size) == 2 else (1, *size)
            made = geometry.output(height, width)
            image = (batch, height, width)
            sizes = (batch, geometry.out_channels, *made[2 - len(size) :])
            if min(height, width, *made) < 1:
                raise RuntimeError(f"an image of {height} x {width} is too small for {geometry}")
        if channels != geometry.in_channels:
            raise RuntimeError(f"an input of {channels} channels for {geometry}")
        return image, sizes


def convolved(
    planner: Planner,
    convolution: Convolution,
    image: tuple[int, int, int],
    x: Value,
    y: Value,
    *addends: Value,
) -> None:
    """Make ``y`` out of images of that batch, height and width, which lie in channels-last order,
    and perhaps of an addend.
    """
    if y.tensor.numel():
        step = convolution.struct(*image)
        parts = chunks(step, planner.threads)
        makes = {"y": y, "scratch": planner.memory(scratch_size(step, parts))}
        reads = {"x": x, **dict(zip(("epilogue.addend",), addends, strict=False))}
        planner.step(Kind.CONVOLVE, step, reads, makes, parts)


@dataclass(frozen=True, eq=False)
class Quantize(Operation):
    """Floats of up to four axes to integers; with ``rows`` the last axis is the fastest in memory,
    also of four, which are an image otherwise.
    """

    out: Integers
    rows: bool = False

    def plan(self, planner: Planner, *values: Value) -> Value:
        (x,) = values
        order = order_of_rows(x) if self.rows else _usual_order(x.tensor.dim())
        y = planner.new(x.sizes, torch.uint8, order)
        sizes, (x,), (strides,) = _in_four(planner, y, x)
        arguments = structs.Quantize(
            shape=ShapeStruct(*sizes),
            x_strides=structs.strides_of(strides),
            out=IntegersStruct.of(self.out),
        )
        planner.step(Kind.QUANTIZE, arguments, {"x": x}, {"y": y})
        return y


@dataclass(frozen=True, eq=False)
class Dequantize(Operation):
    """Integers to floats."""

    source: Integers

    def plan(self, planner: Planner, *values: Value) -> Value:
        x, order = _in_a_row(planner, values[0])
        y = planner.new(x.sizes, torch.float32, order)
        of = IntegersStruct.of(self.source)
        arguments = structs.Dequantize(count=x.tensor.numel(), in_=of)
        planner.step(Kind.DEQUANTIZE, arguments, {"x": x}, {"y": y})
        return y


@dataclass(frozen=True, eq=False)
class LookUp(Operation):
    """A function of each integer, ``table`` uint8 ``[256]``."""

    table: Tensor

    def plan(self, planner: Planner, *values: Value) -> Value:
        x, order = _in_a_row(planner, values[0])
        y = planner.new(x.sizes, torch.uint8, order)
        arguments = structs.LookUp(count=x.tensor.numel(), table=self.table.data_ptr())
        planner.step(Kind.LOOK_UP, arguments, {"x": x}, {"y": y})
        return y


class Combination(IntEnum):
    """What is made of two values."""

    ADD = 0
    MULTIPLY = 1


@dataclass(frozen=True, eq=False)
class Binary(Operation):
    """Sum or product of two tensors, either of which may be broadcast."""

    combination: Combination
    one: Integers
    other: Integers
    out: Integers

    def plan(self, planner: Planner, *values: Value) -> Value:
        y = _result_of_two(planner, values, torch.uint8)
        sizes, (one, other), (x_strides, other_strides) = _in_four(planner, y, *values)
        arguments = structs.Binary(
            shape=ShapeStruct(*sizes),
            x_strides=structs.strides_of(x_strides),
            other_strides=structs.strides_of(other_strides),
            operation=self.combination,
            x_integers=IntegersStruct.of(self.one),
            other_integers=IntegersStruct.of(self.other),
            out=IntegersStruct.of(self.out),
        )
        planner.step(Kind.COMBINE, arguments, {"x": one, "other": other}, {"y": y})
        return y


class Calculation(IntEnum):
    """What is made of two floats."""

    SUM = 0
    DIFFERENCE = 1
    PRODUCT = 2
    QUOTIENT = 3


@dataclass(frozen=True, eq=False)
class Arithmetic(Operation):
    """Of two tensors in float32, either of which may be broadcast."""

    calculation: Calculation

    def plan(self, planner: Planner, *values: Value) -> Value:
        y = _result_of_two(planner, values, torch.float32)
        sizes, (one, other), (x_strides, other_strides) = _in_four(planner, y, *values)
        arguments = structs.Arithmetic(
            shape=ShapeStruct(*sizes),
            x_strides=structs.strides_of(x_strides),
            other_strides=structs.strides_of(other_strides),
            operation=self.calculation,
        )
        planner.step(Kind.CALCULATE, arguments, {"x": one, "other": other}, {"y": y})
        return y


@dataclass(frozen=True, eq=False)
class Concatenate(Operation):
    """Tensors of one scale beside each other."""

    dim: int

    def plan(self, planner: Planner, *values: Value) -> Value:
        # As in torch, an empty tensor of one axis fits any other.
        values = tuple(value for value in values if value.sizes != (0,)) or values
        dim = self.dim % values[0].tensor.dim()
        sizes, start = list(values[0].sizes), 0
        for value in values[1:]:
            fits = [a == b for a, b in zip(sizes, value.sizes, strict=False)]
            if len(value.sizes) != len(sizes) or not all(
                fit for axis, fit in enumerate(fits) if axis != dim
            ):
                raise RuntimeError(f"tensors of {tuple(sizes)} and {value.sizes} do not fit")
        sizes[dim] = sum(value.sizes[dim] for value in values)
        y = planner.new(sizes, values[0].tensor.dtype, order_of(values[0]))
        for value in values:
            part = y.tensor.narrow(dim, start, value.sizes[dim])
            planner.moved(value, Value(part, y.buffer))
            start += value.sizes[dim]
        return y


@dataclass(frozen=True, eq=False)
class Look(Operation):
    """Another look at the same values: what ``function`` makes of a tensor is a view, or several.

    Attributes:
        args: behind the tensor; a `Ref` is a number that is read.
        numbers: the names of these, in the order in which they are read.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    numbers: tuple[str, ...] = ()

    def plan(self, planner: Planner, *values: Any) -> Any:
        x, *numbers = values
        known = dict(zip(self.numbers, numbers, strict=True))
        args = map_refs(self.args, lambda ref: known[ref.name])
        seen = self.function(x.tensor, *args)
        first = seen if isinstance(seen, Tensor) else seen[0]
        if first.untyped_storage()._cdata != x.tensor.untyped_storage()._cdata:
            # It would have copied, in the order in which the axes are counted.
            x = planner.laid(x, range(x.tensor.dim()))
            seen = self.function(x.tensor, *args)
        if isinstance(seen, Tensor):
            return Value(seen, x.buffer)
        return tuple(Value(part, x.buffer) for part in seen)


@dataclass(frozen=True, eq=False)
class Item(Operation):
    """One of several."""

    index: int

    def plan(self, planner: Planner, *values: Any) -> Any:
        return values[0][self.index]


class Pooled(IntEnum):
    """What is made of a window."""

    LARGEST = 0
    MEAN = 1
    MEAN_WITH_PADDING = 2  # whose zeros count


@dataclass(frozen=True, eq=False)
class Pool(Operation):
    """Pooling of images over windows; a divisor of 0 is the number of values."""

    pooled: Pooled
    windows: Windows
    divisor: int
    source: Integers
    out: Integers

    def plan(self, planner: Planner, *values: Value) -> Value:
        x = planner.laid(values[0], CHANNELS_LAST)
        batch, channels, *image = x.sizes
        made = self.windows.made(image)
        y = planner.new((batch, channels, *made), torch.uint8, CHANNELS_LAST)
        arguments = structs.Pooling(
            input=ShapeStruct(batch, *image, channels),
            output=ShapeStruct(batch, *made, channels),
            operation=self.pooled,
            **self.windows.as_fields(),
            divisor=self.divisor,
            in_integers=IntegersStruct.of(self.source),
            out_integers=IntegersStruct.of(self.out),
        )
        planner.step(Kind.POOL, arguments, {"x": x}, {"y": y})
        return y


@dataclass(frozen=True, eq=False)
class Mean(Operation):
    """The mean over neighbouring axes, behind which at most one more stands in memory: those of an
    image, or the tokens of a text.
    """

    dims: tuple[int, ...]
    keepdim: bool
    source: Integers
    out: Integers

    def plan(self, planner: Planner, *values: Value) -> Value:
        rank = values[0].tensor.dim()
        dims = sorted(dim % rank for dim in self.dims)
        kept = [axis for axis in range(rank) if axis not in dims]
        is_last = dims[-1] == rank - 1
        order = [*kept[:-1], *dims, *kept[-1:]] if is_last else list(range(rank))
        x = planner.laid(values[0], order)
        sizes = [1 if axis in dims else size for axis, size in enumerate(x.sizes)]
        made = order if self.keepdim else range(len(kept))
        y = planner.new(
            sizes if self.keepdim else [x.sizes[axis] for axis in kept], torch.uint8, made
        )
        outer = order[: order.index(dims[0])]
        inner = order[order.index(dims[-1]) + 1 :]
        batch, pixels, channels = (
            math.prod(x.sizes[axis] for axis in axes) for axes in (outer, dims, inner)
        )
        arguments = structs.Pooling(
            input=ShapeStruct(batch, 1, pixels, channels),
            output=ShapeStruct(batch, 1, 1, channels),
            operation=Pooled.MEAN,
            **Windows((1, pixels)).as_fields(),
            in_integers=IntegersStruct.of(self.source),
            out_integers=IntegersStruct.of(self.out),
        )
        planner.step(Kind.POOL, arguments, {"x": x}, {"y": y})
        return y


def _usual_order(rank: int) -> Sequence[int]:
    return CHANNELS_LAST if rank == 4 else range(rank)


def order_of(value: Value) -> Sequence[int]:
    """The order in which values lie in one row; the usual one where they do not."""
    return value.order or _usual_order(value.tensor.dim())


def order_of_rows(value: Value, axes: int = 1) -> Sequence[int]:
    """The order in which rows lie, each over so many axes at the end; as counted where they do not
    lie beside each other.
    """
    usual, order = tuple(range(value.tensor.dim())), value.order
    return order if order and order[-axes:] == usual[-axes:] else usual


def _in_a_row(planner: Planner, value: Value) -> tuple[Value, Sequence[int]]:
    order = order_of(value)
    return planner.laid(value, order), order


def _result_of_two(planner: Planner, values: Sequence[Value], dtype: torch.dtype) -> Value:
    """Memory for what is made of two tensors, in the order of one that is as large."""
    sizes = torch.broadcast_shapes(*(value.sizes for value in values))
    whole = next((value for value in values if value.sizes == sizes), None)
    return planner.new(sizes, dtype, _usual_order(len(sizes)) if whole is None else order_of(whole))


def _in_four(
    planner: Planner, y: Value, *xs: Value
) -> tuple[list[int], tuple[Value, ...], list[list[int]]]:
    """Sizes of four axes in the order of ``y``, and what is read, repeated to its sizes, with the
    strides of these axes. Those in front that are missing have the size 1; where there are more,
    all is one row.
    """
    order, rank = order_of(y), y.tensor.dim()
    read = [Value(x.tensor.expand(y.sizes), x.buffer) for x in xs]
    if rank > 4:
        dense = tuple(planner.laid(x, order) for x in read)
        return [1, 1, 1, y.tensor.numel()], dense, [[0, 0, 0, 1]] * len(dense)
    missing = 4 - rank
    sizes = [1] * missing + [y.tensor.shape[axis] for axis in order]
    strides = [[0] * missing + [x.tensor.stride(axis) for axis in order] for x in read]
    return sizes, tuple(read), strides
