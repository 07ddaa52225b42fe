"""Small integers packed into int32 words, along an axis.

Tested in tests/model/language/test_checkpoints.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = 32


def packed(integers: Tensor, bits: int, axis: int, order: Sequence[int] = ()) -> Tensor:
    """Integers from 0 on as int32 words, the first in the lowest bits.

    Args:
        integers: of a size along the axis that fills words.
        bits: of each integer; a divisor of 32.
        axis: along which neighbours share a word.
        order: which neighbour is in which place of a word, lowest first; as they come without.

    Example:
        >>> packed(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0]]), 4, axis=1)
        tensor([[124076833]], dtype=torch.int32)
    """
    count = _WORD // bits
    parts = integers.movedim(axis, -1).to(torch.int64)
    parts = parts.reshape(*parts.shape[:-1], -1, count)
    if order:
        parts = parts[..., list(order)]
    shifts = torch.arange(count, device=integers.device) * bits
    words = (parts << shifts).sum(-1)
    return words.to(torch.int32).movedim(-1, axis).contiguous()


def unpacked(words: Tensor, bits: int, axis: int, order: Sequence[int] = ()) -> Tensor:
    """What `packed` packed, uint8.

    Example:
        >>> unpacked(torch.tensor([[124076833]], dtype=torch.int32), 4, axis=1)
        tensor([[1, 2, 3, 4, 5, 6, 7, 0]], dtype=torch.uint8)
    """
    count = _WORD // bits
    shifts = torch.arange(count, device=words.device, dtype=torch.int32) * bits
    parts = (words.movedim(axis, -1)[..., None] >> shifts) & (2**bits - 1)
    if order:
        parts = parts[..., torch.tensor(order).argsort()]
    integers: Tensor = parts.to(torch.uint8).flatten(-2).movedim(-1, axis).contiguous()
    return integers
