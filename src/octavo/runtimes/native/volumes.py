"""Convolutions of volumes in native programs, as those of images.

An image of the result reads some images of the volume, one for each tap of the kernel in depth.
Their channels side by side are the channels of one image, which a plain convolution reads.

Tested in tests/runtimes/native/test_volumes.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from octavo.runtimes.native.convolution import Convolution
from octavo.runtimes.native.operations import convolved
from octavo.runtimes.native.planning import CHANNELS_LAST, Operation, Planner, Value

VOLUMES = (0, 2, 3, 4, 1)  # the axes of volumes in memory, from the slowest


@dataclass(frozen=True)
class Depth:
    """How windows lie along the depth of a volume."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def output(self, depth: int) -> int:
        """How deep the result is."""
        return (depth + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def read(self, tap: int, depth: int) -> tuple[int, int, int]:
        """The first image of the volume that a tap reads, the image of the result that it reads it
        for, and for how many of these there is one.
        """
        start = tap * self.dilation - self.padding
        first = max(0, -(start // self.stride))
        read = start + first * self.stride
        count = min(self.output(depth) - first, -(-(depth - read) // self.stride))
        return read, first, max(0, count)


def as_images(weight: Tensor) -> Tensor:
    """A weight ``[out, in / groups, kd, kh, kw]`` as the plain convolution takes it."""
    return weight.permute(0, 3, 4, 2, 1).flatten(3).contiguous()


def weight_of(images: Tensor, depth: int) -> Tensor:
    """What `as_images` was given, for a kernel of this depth."""
    taps: Tensor = images.unflatten(3, (depth, -1))
    return taps.permute(0, 4, 3, 1, 2).contiguous()


@dataclass(frozen=True, eq=False)
class Volume(Operation):
    """A convolution of volumes ``[batch, channels, depth, height, width]``.

    Attributes:
        images: the convolution of images that have the channels of all taps.
        depth: which these are.
    """

    images: Convolution
    depth: Depth

    def plan(self, planner: Planner, *values: Value) -> Value:
        geometry = self.images.geometry
        x = planner.laid(values[0], VOLUMES)
        batch, channels, depth, height, width = x.sizes
        made = (self.depth.output(depth), *geometry.output(height, width))
        if channels * self.depth.kernel != geometry.in_channels:
            raise RuntimeError(f"an input of {channels} channels for {self.depth} of {geometry}")
        if min(depth, height, width, *made) < 1:
            raise RuntimeError(
                f"a volume of {depth} x {height} x {width} is too small for {self.depth} of "
                f"{geometry}"
            )
        read = x if self.depth == Depth(1) else self._beside(planner, x, made[0])
        dtype = torch.uint8 if self.images.epilogue.out_scale else torch.float32
        count = batch * made[0]
        y = planner.new((count, geometry.out_channels, *made[1:]), dtype, CHANNELS_LAST)
        convolved(planner, self.images, (count, height, width), read, y)
        return Value(y.tensor.unflatten(0, (batch, made[0])).transpose(1, 2), y.buffer)

    def _beside(self, planner: Planner, x: Value, deep: int) -> Value:
        """``[batch, depth, height, width, groups, taps, channels of a group]``."""
        groups, (batch, channels, depth, height, width) = self.images.geometry.groups, x.sizes
        sizes = (batch, deep, height, width, groups, self.depth.kernel, channels // groups)
        beside = planner.new(sizes, torch.uint8, range(7))
        volume = x.tensor.permute(VOLUMES).unflatten(4, (groups, -1))
        for tap in range(self.depth.kernel):
            read, first, count = self.depth.read(tap, depth)
            first = first if count else deep
            from_ = volume[:, read :: self.depth.stride].narrow(1, 0, count)
            to = beside.tensor[:, :, :, :, :, tap]
            inside = Value(to.narrow(1, first, count), beside.buffer)
            planner.moved(Value(from_, x.buffer), inside)
            for start, end in ((0, first), (first + count, deep)):
                padding = to.narrow(1, start, end - start)
                planner.filled(Value(padding, beside.buffer), self._nothing)
        return beside

    @cached_property
    def _nothing(self) -> Tensor:
        """What padding holds."""
        return torch.tensor([self.images.in_zero_point], dtype=torch.uint8)
