"""Windows over images: of convolutions and pooling.

Tested in tests/runtimes/native/test_operations.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Windows:
    """Sizes for height and width.

    Attributes:
        taps: of a window.
        stride, padding, dilation: as layers have them.
        ceil: whether a last window may reach beyond the padding.
    """

    taps: Sequence[int]
    stride: Sequence[int] = (1, 1)
    padding: Sequence[int] = (0, 0)
    dilation: Sequence[int] = (1, 1)
    ceil: bool = False

    def made(self, image: Sequence[int]) -> tuple[int, ...]:
        """How many lie along each axis of an image.

        Example:
            >>> Windows((3, 3), (2, 2), (1, 1)).made((224, 9))
            (112, 5)

        Raises:
            RuntimeError: the image is too small for any.
        """
        axes = zip(image, self.taps, self.stride, self.padding, self.dilation, strict=True)
        return tuple(self._along(*axis) for axis in axes)

    def _along(self, size: int, taps: int, stride: int, padding: int, dilation: int) -> int:
        room = size + 2 * padding - dilation * (taps - 1) - 1
        count = (room + (stride - 1 if self.ceil else 0)) // stride + 1
        if self.ceil and (count - 1) * stride >= size + padding:
            count -= 1  # the last one has to begin in the image, or in front of it
        if size < 1 or room < 0:
            raise RuntimeError(
                f"{size} values with a padding of {padding} hold no window of {taps}"
            )
        return count

    def as_fields(self) -> dict[str, int]:
        """As the structs of steps have them."""
        (kernel_height, kernel_width), (stride_y, stride_x) = self.taps, self.stride
        (padding_top, padding_left), (dilation_y, dilation_x) = self.padding, self.dilation
        return {
            "kernel_height": kernel_height,
            "kernel_width": kernel_width,
            "stride_y": stride_y,
            "stride_x": stride_x,
            "padding_top": padding_top,
            "padding_left": padding_left,
            "dilation_y": dilation_y,
            "dilation_x": dilation_x,
        }
