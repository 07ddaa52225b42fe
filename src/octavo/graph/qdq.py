"""What a QDQ graph says: the operators that round, and who reads what they make.

A quantized activation is ``x -> QUANTIZE -> DEQUANTIZE``, one that is rounded by its own range at
each call ``x -> DYNAMIC``. A quantized weight is a constant of integers behind
`DEQUANTIZE_WEIGHT`, those of four bits behind `UNPACK` too. Whoever reads or writes such a graph
takes the names from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from octavo.graph.graph import Graph, Node, Ref, TensorMeta
from octavo.graph.operators import arguments
from octavo.numerics import octavo_operators
from octavo.numerics.scheme import Scheme

QUANTIZE, DEQUANTIZE = "octavo.quantize.default", "octavo.dequantize.default"
DEQUANTIZE_WEIGHT = "octavo.dequantize.Tensor"
DYNAMIC = "octavo.fake_quantize_dynamic.default"
UNPACK = "octavo.unpack_int4.default"
ATTENTION = "octavo.attention.default"

# Operators whose results are floats that stand for integers.
DEQUANTIZED = frozenset({DEQUANTIZE, DEQUANTIZE_WEIGHT, DYNAMIC})


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
        return (
            list(self.stored.shape)
            if self.unpack is None
            else list(arguments(self.unpack)["shape"])
        )

    @property
    def signed(self) -> bool:
        if self.unpack is None:
            return self.stored.dtype.is_signed
        return bool(arguments(self.unpack)["signed"])

    @cached_property
    def integers(self) -> Tensor:
        """The integers, of the weight's shape, each in a type of its own."""
        if self.unpack is None:
            return self.stored
        return octavo_operators.unpack_int4(self.stored, self.shape, self.signed)

    @property
    def symmetric(self) -> bool:
        """Whether all zero points are 0."""
        return not bool(self.zero_point.any())

    @property
    def axis(self) -> int | None:
        """The axis whose indices have a scale each; ``None`` with one for all, or for groups."""
        axes = range(len(self.shape)) if self.scale.numel() > 1 else ()
        return next((axis for axis in axes if self.channel_scale(axis) is not None), None)

    @property
    def grouped(self) -> bool:
        """Whether scales belong neither to all of the weight nor to the indices of one axis."""
        return self.scale.numel() > 1 and self.axis is None

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
        return octavo_operators.dequantize(self.integers, self.scale, self.zero_point)


def weight_readers(
    name: str, shape: Sequence[int], scheme: Scheme, scale: str, zero_point: str
) -> list[Node]:
    """The nodes that read a weight back from its integers; the last one gives the floats.

    Args:
        name: of the constant that holds the integers, two to a byte if they have four bits.
        shape: of the weight.
        scheme: of its integers.
        scale, zero_point: the constants that hold them, of the weight's rank.
    """
    sizes, nodes = tuple(shape), []
    read = Ref(name)
    if scheme.integers.bits <= 4:
        signed = scheme.integers.signed
        meta = TensorMeta(sizes, "int8" if signed else "uint8")
        nodes.append(Node(f"{name}.unpacked", UNPACK, (read, list(sizes), signed), meta=meta))
        read = Ref(nodes[-1].name)
    args, meta = (read, Ref(scale), Ref(zero_point)), TensorMeta(sizes, "float32")
    return [*nodes, Node(f"{name}.dequantized", DEQUANTIZE_WEIGHT, args, meta=meta)]


def weight_behind(graph: Graph, value: Any) -> QuantizedWeight | None:
    """The integers that an argument of a layer is read from, where these are constant.

    ``None`` where it is float, an activation, or no tensor.
    """
    reader = graph.producer(value)
    if reader is None or reader.op != DEQUANTIZE_WEIGHT:
        return None
    unpack = graph.producer(reader.args[0])
    if unpack is not None and unpack.op != UNPACK:
        return None
    q, scale, zero_point = reader.args
    q = q if unpack is None else unpack.args[0]
    tensors = [graph.constant(arg) for arg in (q, scale, zero_point)]
    if any(tensor is None for tensor in tensors):
        return None
    return QuantizedWeight(q.name, reader, unpack, *tensors)  # type: ignore[arg-type]


def rounding_behind(graph: Graph, value: Any) -> Node | None:
    """The quantize node whose integers an activation is read back from.

    ``None`` where it is float, a weight, or no tensor.
    """
    reader = graph.producer(value)
    source = None if reader is None or reader.op != DEQUANTIZE else reader.args[0].name
    rounding = None if source is None else graph.by_name.get(source)
    return rounding if rounding is not None and rounding.op == QUANTIZE else None
