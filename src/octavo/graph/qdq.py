"""What a QDQ graph says: the operators that round, and who reads what they make.

A quantized activation is ``x -> QUANTIZE -> DEQUANTIZE``, one that is rounded by its own range at
each call ``x -> DYNAMIC``. A quantized weight is a constant of integers behind one of
`WEIGHT_READERS`, those of four bits behind `UNPACK` too. Whoever reads or writes such a graph takes
the names from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Graph, Node
from octavo.numerics import affine, octavo_ops

QUANTIZE, DEQUANTIZE = "octavo.quantize.default", "octavo.dequantize.default"
DEQUANTIZE_CHANNELS = "octavo.dequantize_channels.default"
DEQUANTIZE_GROUPS = "octavo.dequantize_groups.default"
DYNAMIC = "octavo.fake_quantize_dynamic.default"
UNPACK = "octavo.unpack_int4.default"
ATTENTION = "octavo.attention.default"

WEIGHT_READERS = frozenset({DEQUANTIZE, DEQUANTIZE_CHANNELS, DEQUANTIZE_GROUPS})
# Operators whose results are floats that stand for integers.
DEQUANTIZED = WEIGHT_READERS | {DYNAMIC}


def is_own(node: Node) -> bool:
    """Whether a node is one of Octavo's operators, and none of the model's own."""
    return node.op.startswith("octavo.")


@dataclass(frozen=True)
class QuantizedWeight:
    """A constant weight that is kept as integers: ``weight = (integers - zero_point) * scale``.

    Attributes:
        name: of the constant that holds the integers.
        reader: the node that gives its floats.
        unpack: the node in front of it where two integers share a byte; else ``None``.
        stored: the constant.
        scale: float32, of the weight's rank. Each size is the weight's own, or 1 where all share
            a scale, or a divisor where so many groups of neighbours have one each.
        zero_point: int32, of the same shape.
    """

    name: str
    reader: Node
    unpack: Node | None
    stored: Tensor
    scale: Tensor
    zero_point: Tensor

    @property
    def shape(self) -> list[int]:
        return list(self.stored.shape) if self.unpack is None else list(self.unpack.args[1])

    @property
    def signed(self) -> bool:
        return self.stored.dtype.is_signed if self.unpack is None else bool(self.unpack.args[2])

    @cached_property
    def integers(self) -> Tensor:
        """The integers, of the weight's shape, each in a type of its own."""
        if self.unpack is None:
            return self.stored
        return octavo_ops.unpack_int4(self.stored, self.shape, self.signed)

    @property
    def symmetric(self) -> bool:
        """Whether all zero points are 0."""
        return not bool(self.zero_point.any())

    @property
    def grouped(self) -> bool:
        """Whether neighbours along an axis share a scale, and those further on do not."""
        return any(own not in (1, n) for own, n in zip(self.scale.shape, self.shape, strict=True))

    @property
    def axis(self) -> int | None:
        """The axis whose indices have a scale each; ``None`` with one for all, or for groups."""
        own = [axis for axis, size in enumerate(self.scale.shape) if size == self.shape[axis]]
        found = [axis for axis in own if self.channel_scale(axis) is not None]
        return found[0] if found else None

    def channel_scale(self, axis: int) -> Tensor | None:
        """The scale ``[channels]`` of each index of an axis; ``None`` where others differ too."""
        sizes = [1] * len(self.shape)
        sizes[axis] = self.shape[axis]
        if any(own not in (1, size) for own, size in zip(self.scale.shape, sizes, strict=True)):
            return None
        return self.scale.expand(sizes).flatten().contiguous()

    def parameters(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each value, in shapes that broadcast to the weight."""
        scale, zero_point = self.scale, self.zero_point
        for axis, (own, size) in enumerate(zip(self.scale.shape, self.shape, strict=True)):
            if own not in (1, size):
                scale = scale.repeat_interleave(size // own, axis)
                zero_point = zero_point.repeat_interleave(size // own, axis)
        return scale, zero_point

    def floats(self) -> Tensor:
        """What the integers stand for, float32."""
        return octavo_ops.dequantize(self.integers, self.scale, self.zero_point)


def weight_behind(graph: Graph, value: Any) -> QuantizedWeight | None:
    """The integers that an argument of a layer is read from, where these are constant.

    ``None`` where it is float, an activation, or no tensor.
    """
    reader = graph.producer(value)
    if reader is None or reader.op not in WEIGHT_READERS:
        return None
    unpack = graph.by_name.get(reader.args[0].name)
    if unpack is not None and unpack.op != UNPACK:
        return None
    name = (reader if unpack is None else unpack).args[0].name
    if name not in graph.constants:
        return None
    stored = graph.constants[name]
    dims = stored.dim() if unpack is None else len(unpack.args[1])
    scale, zero_point = (_parameter(graph, reader, index, dims) for index in (1, 2))
    return QuantizedWeight(name, reader, unpack, stored, scale, zero_point)


def _parameter(graph: Graph, reader: Node, index: int, dims: int) -> Tensor:
    """The scale or zero point among a reader's arguments, of the weight's rank."""
    if reader.op == DEQUANTIZE:
        dtype = torch.float32 if index == 1 else torch.int32
        return torch.tensor(reader.args[index], dtype=dtype).reshape([1] * dims)
    value = graph.constants[reader.args[index].name]
    if reader.op == DEQUANTIZE_GROUPS:
        return value
    return affine.broadcast(value, dims, reader.args[3])


def rounding_behind(graph: Graph, value: Any) -> Node | None:
    """The quantize node whose integers an activation is read back from.

    ``None`` where it is float, a weight, or no tensor.
    """
    reader = graph.producer(value)
    source = None if reader is None or reader.op != DEQUANTIZE else reader.args[0].name
    rounding = None if source is None else graph.by_name.get(source)
    return rounding if rounding is not None and rounding.op == QUANTIZE else None
