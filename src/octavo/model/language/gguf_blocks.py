"""Integers in the blocks of GGUF files: 32 neighbours of a row, with a scale of their own.

===========  ======================================================================================
``Q8_0``     float16 scale, 32 int8: ``d * q``
``Q4_0``     float16 scale, 16 bytes: ``d * (q - 8)``; byte j has the j-th value in its low half,
             and the one 16 further in its high half
``Q4_1``     float16 scale and least value, 16 bytes as before: ``d * q + m``
===========  ======================================================================================

Tested in tests/model/language/test_gguf.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.model.language.layouts.linear_integers import LinearIntegers

BLOCK = 32


def kind_of(layer: LinearIntegers) -> str:
    """The name of the blocks that hold these integers.

    Raises:
        ValueError: none does.
    """
    if layer.group_size % BLOCK:
        raise ValueError(f"groups of {layer.group_size} do not fill blocks of {BLOCK}")
    if layer.bits == 8 and not layer.symmetric:
        raise ValueError("8 bits are symmetric there")
    return "Q8_0" if layer.bits == 8 else "Q4_0" if layer.symmetric else "Q4_1"


def blocks_of(layer: LinearIntegers) -> Tensor:
    """The blocks of each row, uint8 ``[out, bytes]``. Scales are rounded to float16.

    Raises:
        ValueError: no blocks hold these integers.
    """
    kind, (rows, columns) = kind_of(layer), layer.integers.shape
    repeats = columns // BLOCK // layer.scale.shape[1]
    scale, zero = (one.repeat_interleave(repeats, 1) for one in (layer.scale, layer.zero_point))
    values = layer.integers.reshape(rows, -1, BLOCK)
    if kind == "Q8_0":
        stored = (values.to(torch.int16) - layer.middle).to(torch.int8).view(torch.uint8)
    else:
        stored = values[..., :16] | values[..., 16:] << 4
    heads = [scale] if kind != "Q4_1" else [scale, -zero * scale]
    parts = [head.to(torch.float16).view(torch.uint8).reshape(rows, -1, 2) for head in heads]
    return torch.cat([*parts, stored], 2).reshape(rows, -1).contiguous()
