"""`Linear`: a linear layer with integer weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import InputError
from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.tracing import is_compiled, is_plain
from octavo.model.nn import compiled
from octavo.model.nn.float_layers import is_transposed, tensors_of
from octavo.model.nn.one_operator import OneOperator


class Linear(OneOperator, floats=nn.Linear, operator="linear"):
    """A linear layer, or transformers' ``Conv1D``, on ``[..., in]`` of any leading shape.

    Example:
        >>> import octavo
        >>> layer = Linear.from_float(nn.Linear(8, 4), octavo.weight_only_qconfig())
        >>> layer(torch.rand(2, 3, 8)).shape, layer.state_dict()["weight"].dtype
        (torch.Size([2, 3, 4]), torch.int8)
    """

    settings = ("in_features", "out_features", "bias", "transposed")

    in_features: int
    out_features: int
    transposed: bool  # whether the float layer's weight was [in, out]
    rounds_from: float = math.inf  # inputs of so many rows are rounded, see `octavo.model.language`

    @classmethod
    def takes(cls, layer: nn.Module) -> bool:
        is_read_by_others = isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear)
        return is_transposed(layer) or (super().takes(layer) and not is_read_by_others)

    @classmethod
    def settings_of(cls, layer: nn.Module) -> dict[str, Any]:
        weight = tensors_of(layer)["weight"]
        bias = is_transposed(layer) or layer.bias is not None
        sizes = (weight.shape[1], weight.shape[0], bias, is_transposed(layer))
        return dict(zip(cls.settings, sizes, strict=True))

    @classmethod
    def empty(cls, settings: Mapping[str, Any]) -> nn.Module:
        return super().empty({n: value for n, value in settings.items() if n != "transposed"})

    def float_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = super().float_shapes()
        return shapes | {"weight": shapes["weight"][::-1]} if self.transposed else shapes

    def graph(self) -> Graph:
        sizes = TensorMeta((None, self.in_features), "float32")
        (read, rounding), readers = self.read_input(sizes), self.weights["weight"].readers()
        weight, nodes = Ref(readers[-1].name), [*readers, *rounding]
        tensors = self.own_tensors()
        bias = Ref("bias") if "bias" in tensors else None
        meta = TensorMeta((None, self.out_features), "float32")
        nodes.append(Node("result", "aten.linear.default", (read, weight, bias), meta=meta))
        inputs = (Input("input", sizes),)
        return Graph(inputs, tensors, tuple(nodes), {"input": Ref("input")}, [Ref("result")])

    def forward(self, input: Tensor) -> Tensor:
        if is_compiled():
            return compiled.linear(input, self.number, self.out_features)
        result = self._at_once(input)
        if result is None:
            result = super().forward(input)
        return result

    def _at_once(self, input: Tensor) -> Tensor | None:
        """What `compute` gives, without what takes longer than a product of few rows; ``None``
        where that has something to say about the input, or the layer is not ready.
        """
        product = self._products.get("weight")
        if product is None or not is_plain(input) or self.is_stale() or self.training:
            return None
        if input.shape[-1] != product.columns or input.numel() == 0:
            return None
        is_rounded = input.numel() >= self.rounds_from * product.columns
        rows, finite = product.of_rows(input, is_rounded)
        if not finite:
            return None
        bias = self._buffers.get("bias")
        result = rows if bias is None else rows.add_(bias)
        return result.view(*input.shape[:-1], product.rows)

    def compute(self, input: Tensor) -> Tensor:
        if not input.is_floating_point() or input.shape[-1:] != (self.in_features,):
            raise InputError(
                f"a {self._get_name()} of {self.in_features} inputs takes floats "
                f"[..., {self.in_features}], not {TensorMeta.of(input)}"
            )
        rows = input.to(torch.float32).reshape(-1, self.in_features)
        (result,) = self.results(rows)
        return result.reshape(*input.shape[:-1], self.out_features).to(input.dtype)
