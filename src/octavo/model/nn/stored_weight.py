"""A weight as a module keeps it: integers, scales and zero points, under clear names.

Tested in tests/model/nn/test_linear.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from octavo.graph.graph import Node, TensorMeta
from octavo.graph.qdq import weight_readers
from octavo.numerics import octavo_operators
from octavo.numerics.affine import QParams, quantized
from octavo.numerics.scheme import Scheme


@dataclass(frozen=True)
class StoredWeight:
    """A weight of a module.

    The module holds three tensors for it: ``<name>`` (int8 or uint8, of the weight's shape; or
    uint8 ``[ceil(n / 2)]``, two integers of four bits to a byte), ``<name>_scale`` (float32) and
    ``<name>_zero_point`` (int32), both of the weight's rank.

    Attributes:
        name: as the float module has it.
        shape: of the weight.
        scheme: of its integers.
    """

    name: str
    shape: tuple[int, ...]
    scheme: Scheme

    @property
    def names(self) -> tuple[str, str, str]:
        """Of the three tensors."""
        return self.name, f"{self.name}_scale", f"{self.name}_zero_point"

    @property
    def packed(self) -> bool:
        """Whether two integers share a byte."""
        return self.scheme.integers.bits <= 4

    @property
    def metas(self) -> dict[str, TensorMeta]:
        """Shape and dtype of the three tensors."""
        integers = TensorMeta(self.shape, str(self.scheme.integers.storage).removeprefix("torch."))
        if self.packed:
            count = 1
            for size in self.shape:
                count *= size
            integers = TensorMeta(((count + 1) // 2,), "uint8")
        sizes = [1] * len(self.shape)
        if self.scheme.channel_axis is not None:
            sizes[self.scheme.channel_axis] = self.shape[self.scheme.channel_axis]
        if self.scheme.group_size is not None:
            sizes = [self.shape[0], self.shape[1] // self.scheme.group_size]
        rank = tuple(sizes)
        metas = (integers, TensorMeta(rank, "float32"), TensorMeta(rank, "int32"))
        return dict(zip(self.names, metas, strict=True))

    def tensors_of(self, weight: Tensor, qparams: QParams) -> dict[str, Tensor]:
        """The three tensors of a float weight."""
        return self.stored(quantized(weight, qparams), qparams)

    def stored(self, integers: Tensor, qparams: QParams) -> dict[str, Tensor]:
        """The three tensors of integers of the weight's shape."""
        parameters = (values.to(integers.device) for values in qparams.of_rank(integers.dim()))
        if self.packed:
            integers = octavo_operators.pack_int4(integers)
        return dict(zip(self.names, (integers, *parameters), strict=True))

    def integers(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The integers, of the weight's shape, each in a type of its own."""
        stored = tensors[self.name]
        if not self.packed:
            return stored
        shape, signed = list(self.shape), self.scheme.integers.signed
        return octavo_operators.unpack_int4(stored, shape, signed)

    def floats(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """What the integers stand for, float32."""
        _, scale, zero_point = (tensors[name] for name in self.names)
        return octavo_operators.dequantize(self.integers(tensors), scale, zero_point)

    def readers(self) -> list[Node]:
        """The nodes of a graph that give the weight's floats; the last one gives them."""
        name, scale, zero_point = self.names
        return weight_readers(name, self.shape, self.scheme, scale, zero_point)
