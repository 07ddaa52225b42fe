"""``E[x x^T]`` of what the rows of a layer's weight meet: windows of a convolution's input, the
zeros of its padding among them.

Tested in tests/quantization/weights/test_patches.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from octavo.graph.operators import arguments
from octavo.graph.weight_layouts import groups_of
from octavo.quantization.weights.bias_correction import Average
from octavo.quantization.weights.layers import Layer
from octavo.quantization.weights.moments import merged

_ROWS = 1024  # of a batch, at most: neighbouring windows tell little that is new


@dataclass(frozen=True)
class PatchMoments:
    """The statistic ``E[x x^T]`` of the windows of each group of channels, ``[groups, n, n]``.

    ``n`` is what a row of the weight has: inputs of the group times taps of the kernel.

    Attributes:
        kernel, stride, padding, dilation: of a convolution in two dimensions.
        groups: of its channels.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, layer: Layer) -> PatchMoments:
        """That of a convolution in two dimensions."""
        given = arguments(layer.node)
        kernel: tuple[int, int] = (layer.weight.shape[2], layer.weight.shape[3])
        stride, padding, dilation = (
            _both(given[name]) for name in ("stride", "padding", "dilation")
        )
        return cls(kernel, stride, padding, dilation, groups_of(layer.node))

    def update(self, state: Average | None, x: Tensor) -> Average:
        images = x.to(torch.float32)
        if images.dim() == 3:  # one image, without a batch
            images = images.unsqueeze(0)
        rows = self._rows(images)
        new = Average(rows.transpose(1, 2) @ rows / max(rows.shape[1], 1), rows.shape[1])
        return new if state is None else merged(state, new)

    def merge(self, one: Average, other: Average) -> Average:
        return merged(one, other)

    def _rows(self, images: Tensor) -> Tensor:
        """The windows, ``[groups, rows, n]``: all, or of as many equal parts of the batch one each,
        by chance. Every n-th would be of a few columns of the image, or of its edge alone.
        """
        windows = self._windows(images)
        height, width = windows.shape[1:3]
        count = len(windows) * height * width
        most = min(count, _ROWS)
        chance = torch.rand(most, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        where = torch.arange(most) + (chance if count > most else 0.0)
        some = (where * (count / most)).long().to(images.device)
        at = some % (height * width)
        rows: Tensor = windows[some // (height * width), at // width, at % width]
        return rows.reshape(len(some), self.groups, -1).transpose(0, 1)

    def _windows(self, images: Tensor) -> Tensor:
        """All of them, ``[images, height, width, channels, *kernel]``: a view, whose values nobody
        has copied.
        """
        down, across = self.padding
        border = (across, across, down, down)
        padded = functional.pad(images, border) if any(border) else images
        for axis, (taps, stride, apart) in enumerate(
            zip(self.kernel, self.stride, self.dilation, strict=True), 2
        ):
            padded = padded.unfold(axis, (taps - 1) * apart + 1, stride)[..., ::apart]
        return padded.permute(0, 2, 3, 1, 4, 5)


def _both(values: list[int]) -> tuple[int, int]:
    return values[0], values[-1]
