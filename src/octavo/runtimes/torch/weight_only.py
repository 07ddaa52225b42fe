"""Layers of which only the weights are integers: linear layers and tables.

The weights are read once for each call, which is what a linear layer on few rows waits for. There
are two ways to make use of it, and a third for many rows:

- Weights of eight bits: Octavo's own kernel, which keeps 16 bits of the input. Where there is none,
  each row of the input is written as the sum of two rows of integers, a coarse one and the
  remainder that it leaves, and both go through oneDNN's int8 kernel: the weights are read once, as
  bytes, and 14 to 16 bits of the input are kept, more than bf16 has.
- Weights of four bits: Octavo's own kernel, which keeps 16 bits of the input; where there is none,
  torch's for them, which computes in bf16.
- Many rows, where these are slower: a part of the weights after the other is dequantized and
  multiplied in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.graph.embedding_bags import bags
from octavo.graph.operators import arguments
from octavo.graph.qdq import QuantizedWeight, weight_behind
from octavo.numerics import octavo_operators
from octavo.numerics.native import library
from octavo.runtimes import cpu
from octavo.runtimes.integers import Integers
from octavo.runtimes.native import eight_bits, matrix
from octavo.runtimes.native import embedding as tables
from octavo.runtimes.native import four_bits as native
from octavo.runtimes.native.matrix import MOST_COLUMNS, Matrix
from octavo.runtimes.native.products import Product
from octavo.runtimes.torch import four_bits
from octavo.runtimes.torch.chains import (
    Call,
    Chain,
    Context,
    Unsupported,
)
from octavo.runtimes.torch.kernel import Kernel, Reads
from octavo.runtimes.torch.onednn import check_kernel, product_kernel

# From so many rows on the float product of dequantized parts is faster than oneDNN's kernel and
# torch's for four bits. Octavo's own were faster for any number, up to 512 rows of 2048x2048 and
# 4096x4096: with VNNI 4 to 8 times as fast, with AVX2 1.1 to 3 times.
_MANY_ROWS, _MANY_OF_TORCH, _MANY_OF_OWN = 128, 32, math.inf
_PART = 512  # output channels that are dequantized at a time
_GROUPS_OF_KERNEL = (32, 64, 128, 256)
_Rows = Callable[[Any], Tensor]  # which rows -> their integers
_STEP_OF_BFLOAT16 = 2.0**-7  # of the input and of the scales


def linear(context: Context, chain: Chain) -> Call:
    """A linear layer on a float input."""
    x, weight_arg, bias = arguments(chain.layer).values()
    quantized = weight_behind(context.graph, weight_arg)
    if quantized is None:
        raise Unsupported("its weight is float")
    weight = Weight(quantized)
    try:
        few = _few_rows(weight, context, chain)
    except Unsupported:
        few = FewRows("octavo.linear, dequantized in parts", weight.product_in_parts, 0.0, 0)
    columns = weight.shape[1]

    def kernel(x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(x.numel() // columns, columns)
        product = few.product if len(rows) < few.limit else weight.product_in_parts
        result = product(rows).reshape(*x.shape[:-1], weight.shape[0])
        return result if bias is None else result.add_(bias)

    return Call(few.name, kernel, (x, bias), rounds=few.rounds)


@dataclass(frozen=True)
class FewRows:
    """A kernel that reads the weights as they are stored.

    Attributes:
        name: in summaries.
        product: ``x @ weight.T``.
        rounds: see `octavo.runtimes.lowered.Lowered`.
        limit: from so many rows on another is faster.
    """

    name: str
    product: Callable[[Tensor], Tensor]
    rounds: float
    limit: float


class Weight:
    """A quantized constant ``[rows, columns]`` that is dequantized in parts, by rows."""

    def __init__(self, weight: QuantizedWeight) -> None:
        self.name, self.shape, self.signed = weight.name, weight.shape, weight.signed
        self.packed = weight.unpack is not None
        if len(self.shape) != 2:
            raise Unsupported("its weight is not a matrix")
        rows, columns = self.shape
        if self.packed and columns % 2:
            raise Unsupported("its weight has four bits and an odd number of columns")
        read_rows = weight.stored.__getitem__
        if self.packed:
            read_rows = _of_nibbles(weight.stored.reshape(rows, -1), self.signed)
        # Opened at each call: a kernel may hold the only copy, and not a part at a time.
        self.opened: Callable[[], _Rows] = lambda: read_rows
        self.scale, self.zero_point = (
            weight.scale.expand(rows, -1),
            weight.zero_point.expand(rows, -1),
        )

    def rows(self, which: Any, read: _Rows | None = None) -> Tensor:
        """Some rows, float32."""
        part = (read or self.opened())(which)
        return octavo_operators.dequantize(part, self.scale[which], self.zero_point[which])

    def integers(self) -> Tensor:
        """All integers, unpacked."""
        return self.opened()(slice(None))

    def product_in_parts(self, x: Tensor) -> Tensor:
        """``x @ weight.T``, with one part of the weight in float at a time."""
        read = self.opened()
        parts = (slice(start, start + _PART) for start in range(0, self.shape[0], _PART))
        return torch.cat([F.linear(x, self.rows(part, read)) for part in parts], 1)


def _of_nibbles(stored: Tensor, signed: bool) -> _Rows:
    def read(which: Any) -> Tensor:
        part = stored[which]
        return octavo_operators.unpack_int4(
            part.reshape(-1), [len(part), 2 * part.shape[1]], signed
        )

    return read


def _few_rows(weight: Weight, context: Context, chain: Chain) -> FewRows:
    """The kernel for a weight.

    Raises:
        Unsupported: there is none for this weight or on this CPU.
    """
    if weight.packed:
        return _own_four_bits(weight, context) or _four_bits(weight, context)
    integers, scale = context.weight(arguments(chain.layer)["weight"])
    own = _own_eight_bits(weight, context, integers, scale)
    if own is not None:
        return own
    bits = 7 if cpu.saturates() else 8
    check_kernel(Integers(1.0, 0, 0, 2**bits - 1, torch.uint8), integers)
    name, product = product_kernel(context, integers, scale, Chain(chain.layer))
    unpack = context.prepacked[weight.name]
    weight.opened = lambda: unpack().__getitem__
    rounds = 2.0 / (2**bits - 2) ** 2
    return FewRows(f"{name}, two digits", _two_digits(product, bits), rounds, _MANY_ROWS)


def _two_digits(product: Callable[..., Tensor], bits: int) -> Callable[[Tensor], Tensor]:
    """A float product out of an integer one: ``x = coarse * s + fine * s / 2**bits``, per row.

    Both digits are unsigned, with zero points in their middle.
    """
    levels, middle = 2**bits - 1, 2 ** (bits - 1)
    smallest = torch.finfo(torch.float32).tiny ** 0.5

    def kernel(x: Tensor) -> Tensor:
        step = x.abs().amax(1, keepdim=True).mul_(2.0 / (levels - 1)).clamp_(min=smallest)
        scaled = x / step
        coarse = scaled.round()
        fine = scaled.sub_(coarse).mul_(levels - 1).round_()
        digits = torch.cat([coarse, fine]).add_(middle).to(torch.int16).to(torch.uint8)
        high, low = product(digits, 1.0, middle, None).chunk(2)
        return high.add_(low, alpha=1.0 / (levels - 1)).mul_(step)

    return kernel


def _own_eight_bits(
    weight: Weight, context: Context, integers: Tensor, scale: Tensor
) -> FewRows | None:
    """Octavo's own kernel; ``None`` where it does not run."""
    rows, columns = integers.shape
    if context.caller == "package" or library.obstacle() or columns > MOST_COLUMNS:
        return None
    held = Matrix.of(integers, scale, None)
    own = context.products[weight.name] = Product.of_eight_bits(held, rows, columns)

    def unpack() -> Tensor:
        return matrix.unpack(held.weights, rows, columns)

    context.prepacked[weight.name] = unpack
    weight.opened = lambda: unpack().__getitem__

    def product(x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            result: Tensor = torch.ops.octavo.multiply_eight_bits.default(x, *held.tensors, rows)
            return result
        return own(x)

    return FewRows("octavo.linear, eight bits", product, eight_bits.STEP, _MANY_OF_OWN)


def _own_four_bits(weight: Weight, context: Context) -> FewRows | None:
    """Octavo's own kernel; ``None`` where it does not run."""
    (rows, columns), shift = weight.shape, 8 if weight.signed else 0
    zero_point = weight.zero_point + shift
    in_range = bool(((zero_point >= 0) & (zero_point < 256)).all())
    fits = native.fits(columns, weight.scale.shape[1])
    if context.caller == "package" or library.obstacle() or not (fits and in_range):
        return None
    packed = native.pack(weight.integers() + shift)
    groups = native.by_blocks(weight.scale), native.by_blocks(zero_point).to(torch.uint8)
    own = context.products[weight.name] = Product.of_four_bits(packed, *groups, rows)
    _hold(weight, context, lambda which: native.unpack(packed, which, rows))

    def product(x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            result: Tensor = torch.ops.octavo.multiply_four_bits.default(x, packed, *groups, rows)
            return result
        return own(x)

    return FewRows("octavo.linear, four bits", product, native.STEP, _MANY_OF_OWN)


def _hold(weight: Weight, context: Context, held: _Rows) -> None:
    """Let the weight be read from where a kernel holds it, as integers from 0 on."""
    signed, name = weight.signed, weight.name

    def read(which: slice) -> Tensor:
        return held(which).to(torch.int8) - 8 if signed else held(which)

    weight.opened = lambda: read
    context.prepacked[name] = lambda: octavo_operators.pack_int4(read(slice(None)))


def _four_bits(weight: Weight, context: Context) -> FewRows:
    """torch's kernel: ``w = (q - 8) * scale + offset`` with q in 0..15, in bf16."""
    rows, columns = weight.shape
    size = columns // weight.scale.shape[1]
    smaller = next((g for g in reversed(_GROUPS_OF_KERNEL) if size % g == 0), None)
    if smaller is None or rows % 16:
        raise Unsupported(f"there is no kernel for {rows} rows in groups of {size}")
    scale, zero_point = (
        t.repeat_interleave(size // smaller, 1) for t in (weight.scale, weight.zero_point)
    )
    shift = 8 if weight.signed else 0
    offset = (8 - (zero_point + shift)) * scale
    integers = weight.integers() + shift
    try:
        packed = four_bits.pack(integers)
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        raise Unsupported(f"torch cannot pack four bits here ({error})") from None
    held = four_bits.reader(packed, integers)
    if held is not None:
        _hold(weight, context, held)
    parameters = torch.stack([scale, offset], 2).transpose(0, 1).contiguous().to(torch.bfloat16)
    product = torch.ops.aten._weight_int4pack_mm_for_cpu.default

    def kernel(x: Tensor) -> Tensor:
        result: Tensor = product(x.to(torch.bfloat16), packed, smaller, parameters)
        return result.to(torch.float32)

    name = "aten._weight_int4pack_mm_for_cpu"
    return FewRows(name, kernel, _STEP_OF_BFLOAT16, _MANY_OF_TORCH)


def embedding(context: Context, chain: Chain) -> Call:
    """Rows of a quantized table, picked as integers."""
    table, args = _table(context, chain), (arguments(chain.layer)["indices"],)
    own = _own_table(table, context)
    if own is not None:
        return Call("octavo.embedding", partial(_own_rows, own.arguments), args)
    weight = Weight(table)

    def kernel(indices: Tensor) -> Tensor:
        picked = _picked(weight, indices.reshape(-1))
        return picked.reshape(*indices.shape, weight.shape[1])

    return Call("octavo.embedding", kernel, args)


def embedding_bag(context: Context, chain: Chain) -> Call:
    """Sums, means or maxima of rows of a quantized table: the rows that are read become floats."""
    table, given = _table(context, chain), arguments(chain.layer)
    mode, ends, padding = given["mode"], given["include_last_offset"], given.get("padding_idx")
    if padding is not None:
        padding %= table.shape[0]
    args = (given["indices"], given["offsets"], given["per_sample_weights"])
    own, users = _own_table(table, context), context.graph.users[chain.layer.name]
    # Of the four results, the kernel has the first.
    if own is not None and all(u.op == "python.getitem" and u.args[1] == 0 for u in users):
        settings = (mode, ends, padding, *own.arguments)
        return Call("octavo.embedding_bag", partial(_own_bags, settings), args)
    weight = Weight(table)

    def kernel(indices: Tensor, offsets: Tensor, factors: Tensor | None) -> Any:
        rows = _picked(weight, indices)
        return bags(rows, indices, offsets, mode, factors, ends, padding)

    return Call("octavo.embedding_bag", kernel, args)


def _own_rows(table: tuple[Any, ...], indices: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        rows: Tensor = torch.ops.octavo.pick_rows.default(indices, *table)
        return rows
    return tables.pick_rows(indices, *table)


def _own_bags(
    settings: tuple[Any, ...], indices: Tensor, offsets: Tensor, factors: Tensor | None
) -> tuple[Tensor]:
    if torch.compiler.is_compiling():
        return (torch.ops.octavo.sum_bags.default(indices, offsets, factors, *settings),)
    return (tables.sum_bags(indices, offsets, factors, *settings),)


def _table(context: Context, chain: Chain) -> QuantizedWeight:
    table = weight_behind(context.graph, arguments(chain.layer)["weight"])
    if table is None:
        raise Unsupported("its table is float")
    return table


def _own_table(table: QuantizedWeight, context: Context) -> tables.Table | None:
    """For Octavo's own kernel; ``None`` where it does not run."""
    packed = table.unpack is not None
    if context.caller == "package" or library.obstacle() or len(table.shape) != 2:
        return None
    if table.stored.dtype not in (torch.int8, torch.uint8):
        return None
    (rows, columns), groups = table.shape, table.scale.shape[1]
    if columns % (groups * (2 if packed else 1)):
        return None
    scales, zeros = (t.expand(rows, -1).contiguous() for t in (table.scale, table.zero_point))
    known = (scales, None if table.symmetric else zeros, 4 if packed else 8, table.signed)
    return tables.Table(table.stored.reshape(rows, -1).contiguous(), *known)


def _picked(weight: Weight, indices: Tensor) -> Tensor:
    """Rows of a table; an index below zero is none of them, as for a float table."""
    if not torch.compiler.is_compiling() and indices.numel() and int(indices.min()) < 0:
        raise IndexError(f"index {int(indices.min())} is out of range")
    return weight.rows(indices)


KERNELS = (
    Kernel(("linear",), linear, Reads.FLOATS, fusion=None),
    Kernel(("embedding",), embedding, Reads.FLOATS, fusion=None),
    Kernel(("embedding_bag",), embedding_bag, Reads.FLOATS, fusion=None),
)
