"""Where windows over an image lie: its padding, and whether LiteRT has a name for that.

Tested in tests/runtimes/litert/test_pooling.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.runtimes.litert.flatbuffer import SAME, VALID
from octavo.runtimes.litert.values import Form, Value
from octavo.runtimes.litert.writer import Writer


def each(value: Any, dims: int) -> list[int]:
    """A size for each dimension, given as one number, one in a list, or all."""
    sizes = list(value) if isinstance(value, list | tuple) else [value]
    return [int(size) for size in (sizes * dims if len(sizes) == 1 else sizes)]


@dataclass(frozen=True)
class Windows:
    """Windows over height and width.

    Attributes:
        size: of a window.
        strides: from one to the next.
        dilation: between what a window reads.
        before: how many values are put in front of the image.
    """

    size: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    before: tuple[int, int]

    @classmethod
    def of(cls, size: Any, strides: Any, padding: Any, dilation: Any = 1) -> Windows:
        """From torch's arguments, which may be for one dimension: the width."""
        reach, step, wide = _two(size, 1), _two(strides, 1), _two(dilation, 1)
        if padding == "same":
            around = tuple(d * (k - 1) // 2 for d, k in zip(wide, reach, strict=True))
        else:
            around = _two(0 if padding == "valid" else padding, 0)
        return cls(reach, step, wide, around)  # type: ignore[arg-type]

    @property
    def reach(self) -> tuple[int, int]:
        """How much of the image a window spans."""
        high, wide = (d * (k - 1) + 1 for d, k in zip(self.dilation, self.size, strict=True))
        return high, wide

    def behind(self, image: Sequence[int], result: Sequence[int]) -> tuple[int, int]:
        """How many values have to be put behind an image for so many windows; may be negative."""
        high, wide = (
            (out - 1) * step + reach - size - before
            for out, step, reach, size, before in zip(
                result, self.strides, self.reach, image, self.before, strict=True
            )
        )
        return high, wide

    def is_same(self, image: Sequence[int], result: Sequence[int]) -> bool:
        """Whether that is what LiteRT pads by itself: SAME."""
        for out, step, reach, size, before in zip(
            result, self.strides, self.reach, image, self.before, strict=True
        ):
            total = max((out - 1) * step + reach - size, 0)
            if out != -(-size // step) or before != total // 2:
                return False
        return True

    def is_valid(self, image: Sequence[int], result: Sequence[int]) -> bool:
        """Whether nothing is padded."""
        return not any(self.before) and all(b <= 0 for b in self.behind(image, result))


def _two(value: Any, one: int) -> tuple[int, int]:
    sizes = list(value) if isinstance(value, list | tuple) else [value, value]
    high, wide = [one, *sizes] if len(sizes) == 1 else sizes
    return int(high), int(wide)


def padded(
    w: Writer, x: Value, windows: Windows, result: Sequence[int], filler: float | None = None
) -> tuple[Value, int]:
    """An image as an operator reads it, and that operator's padding.

    Args:
        w: the file.
        x: the image, channels last.
        windows: over it.
        result: height and width of the result.
        filler: what stands around it, as a number of the image's type; ``None`` for zero.
    """
    image = x.shape[1:3]
    if windows.is_valid(image, result):
        return x, VALID
    if filler is None and windows.is_same(image, result):
        return x, SAME
    behind = [max(0, size) for size in windows.behind(image, result)]
    return surrounded(w, x, windows.before, behind, filler), VALID


def surrounded(
    w: Writer,
    x: Value,
    before: Sequence[int],
    behind: Sequence[int],
    filler: float | None = None,
) -> Value:
    """An image with values around its height and width."""
    around = [[0, 0], [before[0], behind[0]], [before[1], behind[1]], [0, 0]]
    return pad(w, x, around, filler)


def pad(w: Writer, x: Value, around: Sequence[Sequence[int]], filler: float | None) -> Value:
    """A value with others around it: zeros, or a number of its type.

    Args:
        w: the file.
        x: the value.
        around: for each axis how many before and behind.
        filler: the number; ``None`` for what zero is there.
    """
    shape = [size + sum(more) for size, more in zip(x.shape, around, strict=True)]
    sizes = w.ints(np.asarray(around))
    if filler is None:
        return w.op("PAD", [x, sizes], shape, x.form, "PadOptions", last=x.last)
    number = w.constant(filler, Form(x.form.dtype, x.form.quantization), "filler")
    return w.op("PADV2", [x, sizes, number], shape, x.form, "PadV2Options", last=x.last)
