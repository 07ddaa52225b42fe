"""`LinearIntegers`: a linear layer between two layouts.

Tested in tests/model/language/test_checkpoints.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from octavo.errors import ExportError
from octavo.model.nn.description import Description
from octavo.model.nn.embedding import Embedding
from octavo.model.nn.linear import Linear
from octavo.model.nn.stored_weight import StoredWeight
from octavo.numerics.affine import QParams
from octavo.numerics.scheme import Scheme

BITS = (4, 8)


@dataclass(frozen=True)
class LinearIntegers:
    """The weight of a linear layer, ``(integers - zero_point) * scale``, and its bias.

    Attributes:
        bits: of each integer, 4 or 8.
        integers: uint8 ``[out, in]``, from 0 on.
        scale: float32 ``[out, groups]``; of one group where a row has one scale.
        zero_point: int32, of that shape.
        bias: float32 ``[out]``, or ``None``.
        order: which input of the layer each column of the integers is for, int64 ``[in]``; as they
            come without.
    """

    bits: int
    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor | None = None
    order: Tensor | None = None

    def in_groups(self, group_of: Tensor) -> LinearIntegers:
        """With the inputs of a group side by side.

        Args:
            group_of: the group of each input, ``[in]``.

        Raises:
            ValueError: the groups are of different sizes.
        """
        groups = self.scale.shape[1]
        group_of = group_of.to(torch.int64)
        least, most = (int(end) for end in group_of.aminmax())
        if least < 0 or most >= groups:  # of numbers as large as a file likes
            raise ValueError(f"it has {groups} groups, and inputs of groups {least} to {most}")
        sizes = group_of.bincount(minlength=groups)
        if len(sizes) != groups or bool((sizes != self.group_size).any()):
            raise ValueError(f"its groups have {sizes.unique().tolist()} inputs")
        order = group_of.argsort(stable=True)
        if torch.equal(order, torch.arange(len(order))):
            return self
        return replace(self, integers=self.integers[:, order].contiguous(), order=order)

    def in_neighbours(self, sizes: Sequence[Any]) -> LinearIntegers:
        """The same, where its groups are neighbours of one size.

        Args:
            sizes: of groups, as a config says; what is no number above 0 says nothing.

        Raises:
            ValueError: the groups are of another size, or the last one is shorter.
        """
        columns, groups = self.integers.shape[1], self.scale.shape[1]
        said = [size for size in sizes if isinstance(size, int) and size > 0]
        if groups < 1 or columns % groups or (groups > 1 and said and self.group_size not in said):
            of = f" of {' or '.join(map(str, said))}" if said else ""
            raise ValueError(f"its {columns} inputs are not {groups} full groups{of}")
        return self

    @property
    def group_size(self) -> int:
        """How many neighbours along a row share a scale."""
        return self.integers.shape[1] // self.scale.shape[1]

    @property
    def middle(self) -> int:
        """The zero point of symmetric weights."""
        middle: int = 2 ** (self.bits - 1)
        return middle

    @property
    def symmetric(self) -> bool:
        return bool((self.zero_point == self.middle).all())

    @classmethod
    def of(cls, name: str, layer: Linear | Embedding) -> LinearIntegers:
        """Of a layer of Octavo's.

        Args:
            name: of the layer, for messages.
            layer: weight-only; of a table its rows are the outputs.

        Raises:
            ExportError: others have no form for it.
        """
        weight, tensors = layer.weights["weight"], layer.tensors()
        scheme = weight.scheme
        if layer.activation is not None or scheme.integers.bits not in BITS:
            raise ExportError(
                f"{name!r} has {scheme} weights in a {layer.runs} layer: weight-only layers of "
                "4 or 8 bits have a form there"
            )
        shift = 2 ** (scheme.integers.bits - 1) if scheme.integers.signed else 0
        integers = (weight.integers(tensors).to(torch.int16) + shift).to(torch.uint8)
        _, scale, zero_point = (tensors[part] for part in weight.names)
        rows = len(integers)
        return cls(
            scheme.integers.bits,
            integers,
            scale.expand(rows, -1).contiguous(),
            (zero_point + shift).expand(rows, -1).contiguous(),
            tensors.get("bias"),
        )

    def linear(self, dtype: torch.dtype) -> Linear:
        """A layer of Octavo's that has these very integers.

        Args:
            dtype: of the float layer that it was.
        """
        rows, columns = self.integers.shape
        by_channel = self.scale.shape[1] == 1
        signed = self.symmetric
        scheme = Scheme(
            f"{'int' if signed else 'uint'}{self.bits}",
            symmetric=signed,
            channel_axis=0 if by_channel else None,
            group_size=None if by_channel else self.group_size,
        )
        shift = self.middle if signed else 0
        integers = (self.integers.to(torch.int16) - shift).to(scheme.integers.storage)
        qparams = QParams(self.scale, self.zero_point - shift, scheme)
        if by_channel:
            qparams = QParams(qparams.scale[:, 0], qparams.zero_point[:, 0], scheme)
        tensors = StoredWeight("weight", (rows, columns), scheme).stored(integers, qparams)
        if self.bias is not None:
            tensors["bias"] = self.bias
        settings = (columns, rows, self.bias is not None, False)
        description = Description(
            Linear.__name__,
            dict(zip(Linear.settings, settings, strict=True)),
            {"weight": scheme},
            None,
            str(dtype).removeprefix("torch."),
        )
        return Linear(description, tensors).eval()
