"""Convolutions in bfloat16 with strides whose result is one column wide.

On CPUs with AMX torch's kernel of them (oneDNN 3.12) reads memory that is not the image's, and
makes anything, NaN among it. Given an image that is wider by a stride it is right: there the result
has a second column, which is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

OPERATORS = frozenset(
    ("aten.conv2d.default", "aten.conv2d.padding", "aten.conv3d.default", "aten.conv3d.padding")
)


@dataclass(frozen=True)
class Widening:
    """A convolution that is given a wider image where its kernel would be wrong.

    Attributes:
        overload: the operator, ``(input, weight, bias, stride, padding, dilation, groups)``.
    """

    overload: Any

    def __call__(self, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        columns = 0
        if input.dtype == torch.bfloat16:
            columns = _missing(input, weight, *args, **kwargs)
        if not columns:
            result: Tensor = self.overload(input, weight, *args, **kwargs)
            return result
        wider: Tensor = self.overload(F.pad(input, (0, columns)), weight, *args, **kwargs)
        return wider[..., :1].contiguous()

    @property
    def _schema(self) -> Any:
        return self.overload._schema


def _missing(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> int:
    """How many columns give the result a second one; 0 where the kernel is right as it is."""
    step, taps = _last(stride), weight.shape[-1]
    if step == 1 or taps == 1:
        return 0
    border = 0 if isinstance(padding, str) else _last(padding)  # "same" takes no strides
    free = input.shape[-1] + 2 * border - _last(dilation) * (taps - 1) - 1
    return step if 0 <= free < step else 0


def _last(sizes: int | Sequence[int]) -> int:
    return sizes if isinstance(sizes, int) else sizes[-1]
