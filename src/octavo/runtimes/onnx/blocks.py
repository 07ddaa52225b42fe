"""Weights that alone are integers, in blocks: ONNX Runtime's own operators on them.

It has a kernel for weights of 4 or 8 bits that rounds its input to eight bits, block by block, and
one that dequantizes all of the weight at each call, which takes longer than a product of floats.
So the first gets its input as two digits: what it rounds to, and what is left, as rows of their
own. It reads the weight once for both, and what it rounds of the second is nearly nothing.

Tested in tests/runtimes/onnx/test_blocks.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.graph.qdq import QuantizedWeight
from octavo.numerics import octavo_operators
from octavo.runtimes.onnx.sizes import of_rows
from octavo.runtimes.onnx.writer import MICROSOFT, Writer

_SIZES = (256, 128, 64, 32, 16)  # of blocks that the kernels know
_STEPS = 127.0  # that an input has on each side of zero
_INTEGERS = 4  # the kernels that compute on them, as ONNX Runtime counts accuracy

# Of the largest value in a row: what is left is half a step at most, and rounded in turn.
ROUNDS = 1 / (2 * _STEPS * _STEPS)


@dataclass(frozen=True)
class Blocks:
    """A weight ``[rows, inputs]`` as unsigned integers, with a scale for each block of neighbours.

    Attributes:
        name: of the constant that it is made of.
        size: of a block.
        bits: 4 or 8.
        integers: uint8, two to a byte if they have 4 bits: ``[rows, blocks, bytes]``.
        scales: float32 ``[rows, blocks]``.
        zero_points: uint8 ``[rows, blocks]``; ``None`` where all are in the middle.
    """

    name: str
    size: int
    bits: int
    integers: Tensor
    scales: Tensor
    zero_points: Tensor | None

    @staticmethod
    def of(weight: QuantizedWeight) -> Blocks | None:
        """A matrix in blocks; ``None`` where its last axis has none of a size that is known."""
        if len(weight.shape) != 2:
            return None
        rows, inputs = weight.shape
        groups = weight.scale.shape[1] if weight.scale.dim() == 2 else 1
        if size_of_blocks(inputs // groups) is None:
            return None
        bits = 8 if weight.unpack is None else 4
        added = 2 ** (bits - 1) if weight.signed else 0
        integers = (weight.integers.to(torch.int16) + added).to(torch.uint8)
        step = inputs // groups
        scale, zero_point = (p.expand(rows, inputs)[:, ::step] for p in weight.parameters())
        return Blocks.of_groups(weight.name, bits, integers, scale, zero_point + added)

    @staticmethod
    def of_groups(
        name: str, bits: int, integers: Tensor, scale: Tensor, zero_point: Tensor
    ) -> Blocks:
        """Integers from 0 on ``[rows, inputs]``, with scales and zero points ``[rows, groups]``, of
        groups that blocks of a known size divide.
        """
        rows, inputs = integers.shape
        group = inputs // scale.shape[1]
        size = size_of_blocks(group)
        assert size is not None
        in_group = group // size
        scales, zeros = (p.repeat_interleave(in_group, dim=1) for p in (scale, zero_point))
        zeros = zeros.to(torch.uint8)
        stored = integers if bits == 8 else packed(integers)
        return Blocks(
            name,
            size,
            bits,
            stored.reshape(rows, inputs // size, -1),
            scales.to(torch.float32).contiguous(),
            None if bool((zeros == 2 ** (bits - 1)).all()) else zeros,
        )


def size_of_blocks(group: int) -> int | None:
    """The largest size of blocks that divides a group; ``None`` without one."""
    return next((size for size in _SIZES if group % size == 0), None)


def packed(integers: Tensor) -> Tensor:
    """Integers below 16, two to a byte along the last axis: the first of two in the lower half."""
    if integers.shape[-1] % 2:
        integers = torch.nn.functional.pad(integers, (0, 1))
    return integers[..., 0::2] | (integers[..., 1::2] << 4)


def linear(w: Writer, node: Node, blocks: Blocks) -> str:
    """``x @ weight.T + bias``."""
    x, _, bias = arguments(node).values()
    rows, count = blocks.scales.shape
    digits = _two_digits(w, x, blocks.size, count)
    zeros = blocks.zero_points
    if zeros is not None and blocks.bits == 4:
        zeros = packed(zeros)
    named = {"blocks": blocks.integers, "block_scales": blocks.scales.flatten()}
    product = w.op(
        "MatMulNBits",
        digits,
        *(w.initializer(f"{blocks.name}.{kind}", tensor) for kind, tensor in named.items()),
        "" if zeros is None else w.initializer(f"{blocks.name}.block_zeros", zeros.flatten()),
        domain=MICROSOFT,
        K=count * blocks.size,
        N=rows,
        bits=blocks.bits,
        block_size=blocks.size,
        accuracy_level=_INTEGERS,
    )
    pairs = w.op("Reshape", product, w.ints([2, -1, rows]))
    total = w.op("ReduceSum", pairs, w.ints([0]), keepdims=0)
    if bias is not None:
        total = w.op("Add", total, w.read(bias))
    return total if w.rank(x) == 2 else w.op("Reshape", total, of_rows(w, x, rows))


def _two_digits(w: Writer, x: Any, size: int, count: int) -> str:
    """All rows rounded as the kernel does it, and behind them what is left of each."""
    key = f"{x.name}.digits of {size}"
    if key not in w.values:
        blocks = w.op("Reshape", w.read(x), w.ints([-1, count, size]))
        largest = w.op("ReduceMax", w.op("Abs", blocks), w.ints([-1]), keepdims=1)
        tiny = w.constant(torch.finfo(torch.float32).tiny, "float32")
        step = w.op("Max", w.op("Mul", largest, w.constant(1 / _STEPS, "float32")), tiny)
        coarse = w.op("Mul", w.op("Round", w.op("Div", blocks, step)), step)
        both = w.op("Concat", coarse, w.op("Sub", blocks, coarse), axis=0)
        w.values[key] = w.op("Reshape", both, w.ints([-1, count * size]))
    value: str = w.values[key]
    return value


def embedding(w: Writer, ids: Any, blocks: Blocks) -> str:
    """The rows of a table."""
    kind = "uint4" if blocks.bits == 4 else "uint8"
    rows, count = blocks.scales.shape
    shape = [rows, count * blocks.size]
    zeros = blocks.zero_points
    if zeros is None:
        zeros = torch.full((rows, count), 2 ** (blocks.bits - 1), dtype=torch.uint8)
    zeros_shape = [rows, count]
    if blocks.bits == 4:
        zeros = octavo_operators.pack_int4(zeros)
    return w.op(
        "GatherBlockQuantized",
        w.packed_initializer(f"{blocks.name}.blocks", blocks.integers, shape, kind),
        w.read(ids),
        w.initializer(f"{blocks.name}.block_scales", blocks.scales),
        w.packed_initializer(f"{blocks.name}.block_zeros", zeros, zeros_shape, kind),
        domain=MICROSOFT,
        bits=blocks.bits,
        gather_axis=0,
        quantize_axis=1,
        block_size=blocks.size,
    )
