"""The operations of native programs that stand around layers without fixed scales: linear layers
that round what they read at each call, attention and functions of floats, as data.

Tested in tests/runtimes/native/test_dynamic.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from octavo.runtimes.native import attention, structs
from octavo.runtimes.native.attention import AttentionStruct, HeadsStruct
from octavo.runtimes.native.convolution import Activation
from octavo.runtimes.native.matrix import Matrix, Reading
from octavo.runtimes.native.operations import order_of, order_of_rows
from octavo.runtimes.native.planning import Operation, Planner, Value
from octavo.runtimes.native.rows import heads_of, in_heads, masked_by, write_heads_to
from octavo.runtimes.native.structs import Kind

PRODUCTS_OF_A_CHUNK = 2**16  # that are worth another thread's while
QUERIES = 16  # of a head, about, that attention takes at a time
CHANNELS = 8  # of a head: a multiple


@dataclass(frozen=True, eq=False)
class DynamicLinear(Operation):
    """``x @ weight.T + bias`` of float32 rows, each rounded as it is read.

    Attributes:
        matrix: the weight, packed.
        rows, columns: of the weight, without what packing added.
        reading: how rows are rounded: by the range of each, or to 16 bits.
    """

    matrix: Matrix
    rows: int
    columns: int
    reading: Reading

    def plan(self, planner: Planner, *values: Value) -> Value:
        order = order_of_rows(values[0])
        x = planner.laid(values[0], order)
        *outer, width = x.sizes
        if width != self.columns:
            raise RuntimeError(f"rows of {width} values for a weight of {self.columns} columns")
        padded, columns = self.matrix.shape
        y = planner.new((*outer, padded), torch.float32, order)
        count = math.prod(outer)
        step = structs.DynamicLinear(
            count=count,
            width=width,
            reading=self.reading.as_struct(),
            matrix=self.matrix.as_struct(),
        )
        memory = planner.memory(count * (2 * columns + 8))
        parts = planner.chunks(x.tensor.numel() // structs.WORTH_A_CHUNK)
        planner.step(Kind.ROUND_ROWS, step, {"x": x}, {"scratch": memory}, parts)
        parts = count * padded * columns // PRODUCTS_OF_A_CHUNK
        parts = min(planner.chunks(parts), padded // structs.LANES)
        planner.step(Kind.MULTIPLY_ROWS, step, {"scratch": memory}, {"y": y}, parts)
        return Value(y.tensor[..., : self.rows], y.buffer)


@dataclass(frozen=True, eq=False)
class Activate(Operation):
    """A function of each value, float32."""

    activation: Activation

    def plan(self, planner: Planner, *values: Value) -> Value:
        order = order_of(values[0])
        x = planner.laid(values[0], order)
        y = planner.new(x.sizes, torch.float32, order)
        step = structs.Activated(count=x.tensor.numel(), activation=self.activation)
        planner.step(Kind.ACTIVATE, step, {"x": x}, {"y": y})
        return y


@dataclass(frozen=True, eq=False)
class FloatAttention(Operation):
    """Attention of float32 queries, keys and values, perhaps with a mask.

    Attributes:
        causal, scale, shares_heads: as of torch's ``scaled_dot_product_attention``.
    """

    causal: bool
    scale: float | None
    shares_heads: bool

    def plan(self, planner: Planner, *values: Value) -> Value:
        q, k, v, *masks = values
        lead, heads, shared = heads_of(q, k, v, self.shares_heads)
        self._check(q, k, v, heads, shared)
        wide = in_heads(planner, (q, k, v), lead, (heads, shared, shared))
        batch, _, targets, channels = wide[0].sizes
        sources = v.sizes[-2]
        y = planner.new((batch, heads, targets, channels), torch.float32, (0, 2, 1, 3))
        parts = planner.chunks(batch * heads * -(-targets // QUERIES))
        call = AttentionStruct(
            batch=batch,
            heads=heads,
            shared_heads=shared,
            targets=targets,
            sources=sources,
            channels=channels,
            value_channels=channels,
            scale=channels**-0.5 if self.scale is None else self.scale,
            causal=self.causal,
            workers=parts,
        )
        for name, value in zip("qkv", wide, strict=True):
            setattr(call, name, HeadsStruct(None, *value.tensor.stride()[:3]))
        write_heads_to(call, y)
        reads = {f"{name}.values": value for name, value in zip("qkv", wide, strict=True)}
        packed = {name: value for name, value in reads.items() if name != "q.values"}
        for mask in masks:
            reads["mask"] = masked_by(planner, mask, (*lead, heads, targets, sources), call)
        if y.tensor.numel():
            memory = planner.memory(attention.memory_of_floats(call))
            packing = planner.chunks(batch * shared * -(-sources // QUERIES))
            planner.step(Kind.PACK_FLOAT_HEADS, call, packed, {"memory": memory}, packing)
            reads["memory"] = memory
            planner.step(Kind.ATTEND_TO_FLOATS, call, reads, {"out": y}, parts)
        whole = y.tensor.reshape(*lead, heads, targets, channels)
        return Value(whole[(0,) * (3 - len(q.sizes))], y.buffer)

    def _check(self, q: Value, k: Value, v: Value, heads: int, shared: int) -> None:
        sources, channels = k.sizes[-2:]
        fits = q.sizes[-1] == channels == v.sizes[-1] and v.sizes[-2] == sources > 0
        if not fits or channels % CHANNELS or shared < 1 or heads % shared:
            raise RuntimeError(f"attention of {q.sizes}, {k.sizes} and {v.sizes}")
        if self.causal and q.sizes[-2] > sources:
            raise RuntimeError(f"causal attention of {q.sizes[-2]} queries to {sources} keys")
