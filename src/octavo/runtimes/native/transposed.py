"""Transposed convolutions as plain ones, in native programs.

With stride s each pixel of one phase ``(row % s, column % s)`` of the result is a convolution of
the input with every s-th tap of the kernel. All phases are output channels of one convolution,
whose pixels are then put side by side (Shi et al. 2016, "Is the deconvolution layer the same as a
convolutional layer?", arXiv:1609.07009).

Tested in tests/runtimes/native/test_transposed.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.runtimes.native.convolution import Convolution, Geometry
from octavo.runtimes.native.operations import SEQUENCES, convolved
from octavo.runtimes.native.planning import CHANNELS_LAST, Operation, Planner, Value


@dataclass(frozen=True)
class Upscaling:
    """How the windows of a transposed convolution lie: pairs are of rows and columns.

    Attributes:
        padding: of both ends, cut off the result.
        extra: rows and columns that the result has more at its end.
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    extra: tuple[int, int] = (0, 0)
    groups: int = 1

    @property
    def plain(self) -> Geometry:
        """Of the convolution that makes all phases of the pixels that are not cut off."""
        phases = self.stride[0] * self.stride[1]
        taps = self._taps
        before = [t - 1 - first for t, first in zip(taps, self.first, strict=True)]
        sizes = zip(self.kernel, self.stride, self.padding, self.extra, strict=True)
        after = [max(0, (k + e - p - 1) // s) for k, s, p, e in sizes]
        return Geometry(
            self.in_channels,
            self.out_channels * phases,
            taps,
            padding=(before[0], before[1], after[0], after[1]),
            groups=self.groups,
        )

    @property
    def _taps(self) -> tuple[int, int]:
        """Of each phase."""
        rows, columns = (-(-k // s) for k, s in zip(self.kernel, self.stride, strict=True))
        return rows, columns

    @property
    def first(self) -> tuple[int, int]:
        """The first pixels of the phases of which something is not cut off."""
        sizes = zip(self.padding, self.stride, self._taps, strict=True)
        row, column = (min(p // s, taps - 1) for p, s, taps in sizes)
        return row, column

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result."""
        sizes = zip(
            (height, width), self.stride, self.kernel, self.padding, self.extra, strict=True
        )
        high, wide = ((n - 1) * s + k - 2 * p + e for n, s, k, p, e in sizes)
        return high, wide

    def phases_of(self, weight: Tensor) -> Tensor:
        """A weight ``[in, out / groups, kh, kw]`` as the plain convolution takes it.

        Taps that a phase lacks are zero.
        """
        (rows, columns), (down, right) = self._taps, self.stride
        missing = [down * rows - self.kernel[0], right * columns - self.kernel[1]]
        padded = F.pad(weight, [0, missing[1], 0, missing[0]])
        taps = padded.reshape(self.groups, -1, weight.shape[1], rows, down, columns, right)
        phases = taps.permute(0, 4, 6, 2, 3, 5, 1).flip(4, 5)
        return phases.reshape(self.plain.weight_shape).contiguous()

    def weight_of(self, phases: Tensor) -> Tensor:
        """What `phases_of` was given."""
        (rows, columns), (down, right) = self._taps, self.stride
        each = self.out_channels // self.groups
        taps = phases.reshape(self.groups, down, right, each, rows, columns, -1).flip(4, 5)
        padded = taps.permute(0, 6, 3, 4, 1, 5, 2).reshape(
            self.in_channels, each, down * rows, right * columns
        )
        return padded[..., : self.kernel[0], : self.kernel[1]].contiguous()

    def repeated(self, values: Tensor) -> Tensor:
        """Values of each output channel for the plain convolution's channels."""
        phases = self.stride[0] * self.stride[1]
        return values.reshape(self.groups, 1, -1).expand(-1, phases, -1).reshape(-1)


@dataclass(frozen=True, eq=False)
class Transposed(Operation):
    """A transposed convolution of images, or of sequences, which are images of height 1.

    Attributes:
        phases: makes all phases of a pixel, of geometry ``upscaling.plain``.
    """

    phases: Convolution
    upscaling: Upscaling

    def plan(self, planner: Planner, *values: Value) -> Value:
        up, order = self.upscaling, CHANNELS_LAST if len(values[0].sizes) == 4 else SEQUENCES
        x = planner.laid(values[0], order)
        batch, channels, *size = x.sizes
        height, width = size if len(size) == 2 else (1, *size)
        made = up.output(height, width)
        if channels != up.in_channels:
            raise RuntimeError(f"an input of {channels} channels for {up}")
        if min(height, width, *made) < 1:
            raise RuntimeError(f"an image of {height} x {width} is too small for {up}")
        pixels = up.plain.output(height, width)
        dtype = torch.uint8 if self.phases.epilogue.out_scale else torch.float32
        apart = planner.new((batch, up.plain.out_channels, *pixels), dtype, CHANNELS_LAST)
        convolved(planner, self.phases, (batch, height, width), x, apart)
        y = planner.new((batch, up.out_channels, *made), dtype, CHANNELS_LAST)
        self._put_side_by_side(planner, apart, y)
        if len(size) == 2:
            return y
        sequences = Value(y.tensor.squeeze(2), y.buffer)
        # See `octavo.runtimes.native.operations.Layer`.
        return planner.laid(sequences, range(3)) if dtype == torch.float32 else sequences

    def _put_side_by_side(self, planner: Planner, apart: Value, y: Value) -> None:
        up = self.upscaling
        groups, each = up.groups, up.out_channels // up.groups
        phases = apart.tensor.unflatten(1, (groups, *up.stride, each))
        whole = y.tensor.unflatten(1, (groups, each))
        for phase in product(*map(range, up.stride)):
            from_, to = phases[:, :, phase[0], phase[1]], whole
            for axis, at in enumerate(phase):
                stride, dim = up.stride[axis], 3 + axis
                # The place in the result of the first pixel of this phase, which may be cut off.
                start = at + up.first[axis] * stride - up.padding[axis]
                skipped = max(0, -(start // stride))
                start += skipped * stride
                to = to[(slice(None),) * dim + (slice(start, None, stride),)]
                from_ = from_.narrow(dim, skipped, to.shape[dim])
            planner.moved(Value(from_, apart.buffer), Value(to, y.buffer))
