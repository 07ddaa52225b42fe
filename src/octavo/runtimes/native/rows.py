"""The operations of native programs that work on rows: norms, softmax and attention, as data.

Tested in tests/runtimes/native/test_rows.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.runtimes.integers import Integers
from octavo.runtimes.native import attention, structs
from octavo.runtimes.native.attention import AttentionStruct, HeadsStruct
from octavo.runtimes.native.normalization import KINDS, NormalizationStruct
from octavo.runtimes.native.operations import order_of_rows
from octavo.runtimes.native.planning import Operation, Planner, Value
from octavo.runtimes.native.structs import IntegersStruct, Kind

TARGETS = 24  # of a head, that attention takes at a time


@dataclass(frozen=True, eq=False)
class Normalize(Operation):
    """Layer norm, RMS norm or softmax, of integers or floats, to either.

    Attributes:
        kind: a key of `octavo.runtimes.native.normalization.KINDS`.
        axes: how many, at the end, make a row.
        eps: of norms.
        weight, bias: float32, a value for each of a row, of norms.
        source: what is read where it is integers.
        out: what the result is rounded to.
    """

    kind: str
    axes: int = 1
    eps: float = 0.0
    weight: Tensor | None = None
    bias: Tensor | None = None
    source: Integers | None = None
    out: Integers | None = None

    def plan(self, planner: Planner, *values: Value) -> Value:
        order = order_of_rows(values[0], self.axes)
        x = planner.laid(values[0], order)
        y = planner.new(x.sizes, torch.uint8 if self.out else torch.float32, order)
        columns = math.prod(x.sizes[-self.axes :])
        if any(t is not None and t.numel() != columns for t in (self.weight, self.bias)):
            raise RuntimeError(f"rows of {columns} values, which the weight has not")
        arguments = NormalizationStruct(
            count=x.tensor.numel() // max(1, columns),
            columns=columns,
            kind=KINDS[self.kind],
            eps=self.eps,
            weight=None if self.weight is None else self.weight.data_ptr(),
            bias=None if self.bias is None else self.bias.data_ptr(),
        )
        if self.source is not None:
            arguments.x_scale, arguments.x_zero_point = self.source.scale, self.source.zero_point
        if self.out is not None:
            round_to(arguments, self.out)
        chunks = planner.chunks(x.tensor.numel() // structs.WORTH_A_CHUNK)
        makes = {"rounded" if self.out else "out": y}
        makes["scratch"] = planner.memory(chunks * -(-columns // structs.LANES) * structs.LANES * 4)
        planner.step(Kind.NORMALIZE, arguments, {"x": x}, makes, chunks)
        return y


def round_to(arguments: NormalizationStruct, out: Integers | IntegersStruct) -> None:
    """Have a norm round its result."""
    arguments.scale, arguments.zero_point = out.scale, out.zero_point
    arguments.low, arguments.high = out.low, out.high


@dataclass(frozen=True, eq=False)
class AddUp(Operation):
    """The sum of floats over axes that are neighbours, or their mean."""

    dims: tuple[int, ...]
    keepdim: bool
    mean: bool

    def plan(self, planner: Planner, *values: Value) -> Value:
        rank = values[0].tensor.dim()
        dims = sorted(dim % rank for dim in self.dims)
        kept = [axis for axis in range(rank) if axis not in dims]
        # Images may lie with their channels behind the pixels that are added up.
        behind = [*kept[:-1], *dims, *kept[-1:]]
        order = behind if kept and values[0].lies_in(behind) else list(range(rank))
        x = planner.laid(values[0], order)
        first, last = order.index(dims[0]), order.index(dims[-1])
        outer, count, inner = (
            math.prod(x.sizes[axis] for axis in axes)
            for axes in (order[:first], dims, order[last + 1 :])
        )
        sizes = [1 if axis in dims else x.sizes[axis] for axis in range(rank)]
        sizes = sizes if self.keepdim else [x.sizes[axis] for axis in kept]
        y = planner.new(sizes, torch.float32, range(len(sizes)))
        divisor = float(count) if self.mean else 1.0
        arguments = structs.Total(outer=outer, count=count, inner=inner, divisor=divisor)
        planner.step(Kind.ADD_UP, arguments, {"x": x}, {"y": y})
        return y


@dataclass(frozen=True, eq=False)
class Gather(Operation):
    """Rows of a table of integers, as floats; who calls has checked that it has them.

    Attributes:
        table: int8 ``[rows, width]``.
        scales, zero_points: float32 and int32 ``[rows]``.
    """

    table: Tensor
    scales: Tensor
    zero_points: Tensor

    def plan(self, planner: Planner, *values: Value) -> Value:
        rows = planner.laid(values[0], range(values[0].tensor.dim()))
        width = self.table.shape[1]
        y = planner.new((*rows.sizes, width), torch.float32, range(rows.tensor.dim() + 1))
        arguments = structs.Gather(
            count=rows.tensor.numel(),
            width=width,
            table=self.table.data_ptr(),
            scales=self.scales.data_ptr(),
            zero_points=self.zero_points.data_ptr(),
        )
        planner.step(Kind.GATHER, arguments, {"x": rows}, {"y": y})
        return y

    def check(self, rows: Tensor) -> None:
        """See that the table has all of these rows.

        Raises:
            IndexError: it has not.
        """
        if rows.numel():
            least, most = (int(x) for x in rows.aminmax())
            if least < 0 or most >= len(self.table):
                wrong = least if least < 0 else most
                raise IndexError(f"row {wrong} of a table of {len(self.table)} rows")


@dataclass(frozen=True, eq=False)
class Attend(Operation):
    """Attention of queries, keys and values in integers, perhaps with a mask.

    Attributes:
        causal, scale, shares_heads, levels: see `octavo.numerics.octavo_operators.attention`.
        sources: of the three.
        out: what the result is rounded to; ``None`` where it is float32.
    """

    causal: bool
    scale: float | None
    shares_heads: bool
    levels: int
    sources: tuple[Integers, ...]
    out: Integers | None

    def plan(self, planner: Planner, *values: Value) -> Value:
        q, k, v, *masks = values
        lead, heads, shared = heads_of(q, k, v, self.shares_heads)
        self._check(q, k, v, heads, shared)
        wide = in_heads(planner, (q, k, v), lead, (heads, shared, shared))
        batch, _, targets, channels = wide[0].sizes
        sources, value_channels = v.sizes[-2:]
        dtype = torch.uint8 if self.out else torch.float32
        y = planner.new((batch, heads, targets, value_channels), dtype, (0, 2, 1, 3))
        call = AttentionStruct(
            batch=batch,
            heads=heads,
            shared_heads=shared,
            targets=targets,
            sources=sources,
            channels=channels,
            value_channels=value_channels,
            scale=channels**-0.5 if self.scale is None else self.scale,
            levels=self.levels,
            causal=self.causal,
            workers=planner.threads,
        )
        for name, value, source in zip("qkv", wide, self.sources, strict=True):
            strides = value.tensor.stride()[:3]
            setattr(call, name, HeadsStruct(None, *strides, source.scale, source.zero_point))
        write_heads_to(call, y)
        if self.out is not None:
            round_attention_to(call, self.out)
        reads = {f"{name}.values": value for name, value in zip("qkv", wide, strict=True)}
        for mask in masks:
            reads["mask"] = masked_by(planner, mask, (*lead, heads, targets, sources), call)
        memory = planner.memory(attention.memory_of(call))
        packed = {name: value for name, value in reads.items() if name in ("k.values", "v.values")}
        if y.tensor.numel():
            parts = planner.chunks(2 * batch * shared)
            planner.step(Kind.PACK_HEADS, call, packed, {"memory": memory}, parts)
            parts = planner.chunks(batch * heads * -(-targets // TARGETS))
            planner.step(Kind.ATTEND, call, {**reads, "memory": memory}, {"out": y}, parts)
        whole = y.tensor.reshape(*lead, heads, targets, value_channels)
        return Value(whole[(0,) * (3 - len(q.sizes))], y.buffer)

    @staticmethod
    def _check(q: Value, k: Value, v: Value, heads: int, shared: int) -> None:
        sources = k.sizes[-2]
        fits = q.sizes[-1] == k.sizes[-1] > 0 and v.sizes[-2] == sources
        if not fits or shared < 1 or heads % shared:
            raise RuntimeError(f"attention of {q.sizes}, {k.sizes} and {v.sizes}")
        if sources > attention.MOST_SOURCES:
            most = attention.MOST_SOURCES
            raise RuntimeError(f"attention over {sources} keys, of which int8 kernels take {most}")


def round_attention_to(call: AttentionStruct, out: Integers | IntegersStruct) -> None:
    """Have attention round its result."""
    call.out_scale, call.out_zero_point = out.scale, out.zero_point
    call.out_low, call.out_high = out.low, out.high


def heads_of(q: Value, k: Value, v: Value, shares: bool) -> tuple[tuple[int, ...], int, int]:
    """Sizes in front of the heads, how many of them queries have, and how many keys and values."""
    heads = q.sizes[-3] if len(q.sizes) > 2 else 1
    shared = (k.sizes[-3] if len(k.sizes) > 2 else 1) if shares else heads
    return tuple(torch.broadcast_shapes(*(t.sizes[:-3] for t in (q, k, v)))), heads, shared


def in_heads(
    planner: Planner, values: Sequence[Value], lead: Sequence[int], counts: Sequence[int]
) -> list[Value]:
    """Each as ``[batch, heads, rows, channels]`` whose channels stand side by side."""
    return [
        _with_heads(planner, value, (*lead, count))
        for value, count in zip(values, counts, strict=True)
    ]


def write_heads_to(call: AttentionStruct, y: Value) -> None:
    """Have attention write its result as ``y`` lies."""
    for axis, stride in zip(("batch", "head", "row"), y.tensor.stride(), strict=False):
        setattr(call, f"out_{axis}_stride", stride)


def _with_heads(planner: Planner, value: Value, lead: Sequence[int]) -> Value:
    shape = (math.prod(lead[:-1]), lead[-1], *value.sizes[-2:])
    value = Value(value.tensor.expand(*lead, *value.sizes[-2:]), value.buffer)
    seen = value.tensor.reshape(shape)
    same = seen.untyped_storage()._cdata == value.tensor.untyped_storage()._cdata
    if same and (seen.stride(3) == 1 or seen.shape[3] == 1):
        return Value(seen, value.buffer)
    value = planner.laid(value, range(value.tensor.dim()))
    return Value(value.tensor.reshape(shape), value.buffer)


def masked_by(planner: Planner, mask: Value, sizes: Sequence[int], call: AttentionStruct) -> Value:
    """The mask as ``[batch, heads, targets, sources]``, its sources side by side."""
    is_boolean = mask.tensor.dtype == torch.bool
    call.mask_kind = attention.BOOLEAN if is_boolean else attention.ADDED
    if mask.tensor.shape[-1] != sizes[-1] or mask.tensor.stride(-1) != 1:
        rows = mask.tensor.expand(*mask.sizes[:-1], sizes[-1])
        mask = planner.laid(Value(rows, mask.buffer), range(rows.dim()))
    shape = (math.prod(sizes[:-3]), *sizes[-3:])
    wide = Value(mask.tensor.expand(sizes), mask.buffer)
    seen = wide.tensor.reshape(shape)
    if seen.untyped_storage()._cdata != wide.tensor.untyped_storage()._cdata:
        wide = planner.laid(wide, range(wide.tensor.dim()))
        seen = wide.tensor.reshape(shape)
    strides = zip(("batch", "head", "row"), seen.stride(), strict=False)
    for axis, stride in strides:
        setattr(call, f"mask_{axis}_stride", stride)
    return Value(seen, wide.buffer)
