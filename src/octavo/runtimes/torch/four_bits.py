"""The order in which torch's kernel for weights of four bits holds them, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

_BLOCKS = (64, 32)  # rows that stand together, by the instructions that the kernel uses


def pack(integers: Tensor) -> Tensor:
    """What the kernel takes: uint8 ``[rows, columns / 2]`` of integers 0..15 ``[rows, columns]``.

    Raises:
        RuntimeError, NotImplementedError, AttributeError: torch cannot pack them here.
    """
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers.to(torch.int32), 1)
    return packed


def reader(packed: Tensor, integers: Tensor) -> Callable[[slice], Tensor] | None:
    """What gives rows of the integers back; ``None`` where the order is not known.

    torch does not say in which order it packs, so that it is found out and compared.

    Args:
        packed: from `pack`.
        integers: what was packed. Slices begin at multiples of 64.
    """
    rows, columns = integers.shape
    for block in _BLOCKS:
        order = _order(block) if rows % block == 0 else None
        if order is not None:
            read = _read(packed.reshape(rows // block, columns, block // 2), order)
            if torch.equal(read(slice(0, rows)), integers.to(torch.uint8)):
                return read
    return None


def _read(blocks: Tensor, order: Tensor) -> Callable[[slice], Tensor]:
    _, columns, half = blocks.shape
    back = order.argsort()

    def read(which: slice) -> Tensor:
        start, stop, _ = which.indices(len(blocks) * 2 * half)
        part = blocks[start // (2 * half) : -(-stop // (2 * half))]
        nibbles = torch.stack([part & 0xF, part >> 4], 3).reshape(len(part), columns, 2 * half)
        return nibbles.transpose(1, 2)[:, back].reshape(-1, columns)

    return read


@cache
def _order(block: int) -> Tensor | None:
    """The row of each half byte of a block; ``None`` where columns do not stand one by one."""
    rows = torch.arange(block)
    digits = []
    for digit in (rows % 16, rows // 16):
        packed = pack(digit[:, None].expand(block, 32).contiguous()).reshape(32, block // 2)
        nibbles = torch.stack([packed & 0xF, packed >> 4], 2).reshape(32, block)
        if not torch.equal(nibbles, nibbles[:1].expand_as(nibbles)):
            return None
        digits.append(nibbles[0].long())
    order = digits[0] + 16 * digits[1]
    return order if torch.equal(order.sort().values, rows) else None
