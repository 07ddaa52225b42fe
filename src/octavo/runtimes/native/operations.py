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

from octavo.runtimes.integers import Integers
from octavo.runtimes.native import structs
from octavo.runtimes.native.convolution import Convolution, ShapeStruct, chunks, scratch_size
from octavo.runtimes.native.planning import CHANNELS_LAST, Operation, Planner, Value
from octavo.runtimes.native.structs import IntegersStruct, Kind
from octavo.runtimes.native.windows import Windows


@dataclass(frozen=True, eq=False)
class Layer(Operation):
    """A convolution of images, or with ``rows`` a linear layer on the last axis."""

    convolution: Convolution
    rows: bool = False

    def plan(self, planner: Planner, *values: Value) -> Value:
        order = range(values[0].tensor.dim()) if self.rows else CHANNELS_LAST
        x, *addends = (planner.laid(value, order) for value in values)
        image, sizes = self._sizes(x)
        if any(addend.sizes != sizes for addend in addends):
            raise RuntimeError(f"{addends[0].sizes} is added to {sizes}")
        is_float = self.convolution.epilogue.out_scale == 0
        y = planner.new(sizes, torch.float32 if is_float else torch.uint8, order)
        if y.tensor.numel():
            step = self.convolution.struct(*image)
            parts = chunks(step, planner.threads)
            scratch = planner.scratch(scratch_size(step, parts))
            planner.step(Kind.CONVOLVE, step, x, y, next(iter(addends), None), scratch, parts)
        return y

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
            batch, channels, height, width = x.sizes
            made = geometry.output(height, width)
            image, sizes = (batch, height, width), (batch, geometry.out_channels, *made)
            if min(height, width, *made) < 1:
                raise RuntimeError(f"an image of {height} x {width} is too small for {geometry}")
        if channels != geometry.in_channels:
            raise RuntimeError(f"an input of {channels} channels for {geometry}")
        return image, sizes


@dataclass(frozen=True, eq=False)
class Quantize(Operation):
    """Floats of up to four axes to integers; with ``rows`` the last axis is the fastest in memory,
    also of four, which are an image otherwise.
    """

    out: Integers
    rows: bool = False

    def plan(self, planner: Planner, *values: Value) -> Value:
        (x,) = values
        order = range(x.tensor.dim()) if self.rows else _usual_order(x.tensor.dim())
        y = planner.new(x.sizes, torch.uint8, order)
        sizes, strides = _in_four(x.tensor, order)
        arguments = structs.Quantize(
            shape=ShapeStruct(*sizes),
            x_strides=structs.strides_of(strides),
            out=IntegersStruct.of(self.out),
        )
        planner.step(Kind.QUANTIZE, arguments, x, y)
        return y


@dataclass(frozen=True, eq=False)
class Dequantize(Operation):
    """Integers to floats."""

    source: Integers

    def plan(self, planner: Planner, *values: Value) -> Value:
        x, order = _in_a_row(planner, values[0])
        y = planner.new(x.sizes, torch.float32, order)
        of = IntegersStruct.of(self.source)
        planner.step(Kind.DEQUANTIZE, structs.Dequantize(count=x.tensor.numel(), in_=of), x, y)
        return y


@dataclass(frozen=True, eq=False)
class LookUp(Operation):
    """A function of each integer, ``table`` uint8 ``[256]``."""

    table: Tensor

    def plan(self, planner: Planner, *values: Value) -> Value:
        x, order = _in_a_row(planner, values[0])
        y = planner.new(x.sizes, torch.uint8, order)
        arguments = structs.LookUp(count=x.tensor.numel(), table=self.table.data_ptr())
        planner.step(Kind.LOOK_UP, arguments, x, y)
        return y


class Combination(IntEnum):
    """What is made of two values."""

    ADD = 0
    MULTIPLY = 1


@dataclass(frozen=True, eq=False)
class Binary(Operation):
    """Sum or product of two tensors of up to four axes, either of which may be broadcast."""

    combination: Combination
    one: Integers
    other: Integers
    out: Integers

    def plan(self, planner: Planner, *values: Value) -> Value:
        sizes = torch.broadcast_shapes(*(value.sizes for value in values))
        whole = next((value for value in values if value.sizes == sizes), None)
        order = _order_of(whole) if whole is not None else _usual_order(len(sizes))
        y = planner.new(sizes, torch.uint8, order)
        (_, one), (_, other) = (_in_four(v.tensor.expand(sizes), order) for v in values)
        arguments = structs.Binary(
            shape=ShapeStruct(*_in_four(y.tensor, order)[0]),
            x_strides=structs.strides_of(one),
            other_strides=structs.strides_of(other),
            operation=self.combination,
            x_integers=IntegersStruct.of(self.one),
            other_integers=IntegersStruct.of(self.other),
            out=IntegersStruct.of(self.out),
        )
        planner.step(Kind.COMBINE, arguments, values[0], y, other=values[1])
        return y


@dataclass(frozen=True, eq=False)
class Concatenate(Operation):
    """Tensors of one scale beside each other."""

    dim: int

    def plan(self, planner: Planner, *values: Value) -> Value:
        dim = self.dim % values[0].tensor.dim()
        sizes, start = list(values[0].sizes), 0
        for value in values[1:]:
            fits = [a == b for a, b in zip(sizes, value.sizes, strict=True)]
            if not all(fit for axis, fit in enumerate(fits) if axis != dim):
                raise RuntimeError(f"tensors of {tuple(sizes)} and {value.sizes} do not fit")
        sizes[dim] = sum(value.sizes[dim] for value in values)
        y = planner.new(sizes, values[0].tensor.dtype, _order_of(values[0]))
        for value in values:
            part = y.tensor.narrow(dim, start, value.sizes[dim])
            planner.moved(value, Value(part, y.buffer))
            start += value.sizes[dim]
        return y


@dataclass(frozen=True, eq=False)
class Look(Operation):
    """Another look at the same values: what ``function`` makes of a tensor is a view of it."""

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()

    def plan(self, planner: Planner, *values: Value) -> Value:
        (x,) = values
        seen = self.function(x.tensor, *self.args)
        if seen.untyped_storage()._cdata != x.tensor.untyped_storage()._cdata:
            # It would have copied, in the order in which the axes are counted.
            x = planner.laid(x, range(x.tensor.dim()))
            seen = self.function(x.tensor, *self.args)
        return Value(seen, x.buffer)


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
        planner.step(Kind.POOL, arguments, x, y)
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
        planner.step(Kind.POOL, arguments, x, y)
        return y


def _usual_order(rank: int) -> Sequence[int]:
    return CHANNELS_LAST if rank == 4 else range(rank)


def _order_of(value: Value) -> Sequence[int]:
    """The order in which values lie in one row; the usual one where they do not."""
    rank = value.tensor.dim()
    orders: list[Sequence[int]] = [_usual_order(rank), range(rank)]
    return next((order for order in orders if value.lies_in(order)), orders[0])


def _in_a_row(planner: Planner, value: Value) -> tuple[Value, Sequence[int]]:
    order = _order_of(value)
    return planner.laid(value, order), order


def _in_four(tensor: Tensor, order: Sequence[int]) -> tuple[list[int], list[int]]:
    """Sizes and strides of four axes, in this order, those in front that are missing of size 1."""
    missing = 4 - tensor.dim()
    sizes = [1] * missing + [tensor.shape[axis] for axis in order]
    return sizes, [0] * missing + [tensor.stride(axis) for axis in order]
