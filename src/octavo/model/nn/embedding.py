"""`Embedding` and `EmbeddingBag`: tables of integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from octavo.errors import InputError
from octavo.graph.embedding_bags import bags
from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.tracing import is_compiled
from octavo.model.nn import compiled
from octavo.model.nn.float_layers import scale_of_rows
from octavo.model.nn.one_operator import OneOperator


class Table(OneOperator):
    """A table whose rows are picked as integers."""

    settings: ClassVar[tuple[str, ...]] = ("num_embeddings", "embedding_dim", "padding_idx")

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None

    def graph(self) -> Graph:
        nodes = self.weights["weight"].readers()
        meta = TensorMeta((None, self.embedding_dim), "float32")
        picked = (Ref(nodes[-1].name), Ref("input"))
        nodes.append(Node("result", "aten.embedding.default", picked, meta=meta))
        last = float(self.num_embeddings - 1)
        inputs = (Input("input", TensorMeta((None,), "int64"), seen=(0.0, last)),)
        arguments = {"input": Ref("input")}
        return Graph(inputs, self.own_tensors(), tuple(nodes), arguments, [Ref("result")])

    def rows(self, indices: Tensor) -> Tensor:
        """The rows of indices ``[n]``, float32 ``[n, embedding_dim]``.

        Raises:
            InputError: an index is not one of the table.
        """
        if indices.dtype not in (torch.int64, torch.int32):
            raise InputError(f"indices of a table are int64 or int32, not {indices.dtype}")
        if indices.numel() and not (
            0 <= int(indices.min()) <= int(indices.max()) < self.num_embeddings
        ):
            raise InputError(
                f"an index is beyond the {self.num_embeddings} rows of the table: they are "
                f"{int(indices.min())} to {int(indices.max())}"
            )
        (rows,) = self.results(indices.to(torch.int64))
        return rows


class Embedding(Table, floats=nn.Embedding, operator="embedding"):
    """A table, read by indices of any shape; it returns floats of the dtype that it had.

    Tables of transformers that multiply their rows by ``embed_scale`` become one too.

    Example:
        >>> import octavo
        >>> table = Embedding.from_float(nn.Embedding(100, 8), octavo.weight_only_qconfig())
        >>> table(torch.tensor([[1, 2], [3, 4]])).shape
        torch.Size([2, 2, 8])
    """

    settings = (*Table.settings, "embed_scale")

    embed_scale: float

    @classmethod
    def takes(cls, layer: nn.Module) -> bool:
        return super().takes(layer) or scale_of_rows(layer) is not None

    @classmethod
    def settings_of(cls, layer: nn.Module) -> dict[str, Any]:
        own = {name: getattr(layer, name) for name in Table.settings}
        return own | {"embed_scale": 1.0 if super().takes(layer) else scale_of_rows(layer)}

    @classmethod
    def empty(cls, settings: Mapping[str, Any]) -> nn.Module:
        return super().empty({name: settings[name] for name in Table.settings})

    def forward(self, input: Tensor) -> Tensor:
        if is_compiled():
            return compiled.embedding(input, self.number, self.embedding_dim, self.dtype)
        result: Tensor = super().forward(input)
        return result

    def compute(self, input: Tensor) -> Tensor:
        rows = self.rows(input.reshape(-1))
        if self.embed_scale != 1.0:
            rows = rows * self.embed_scale
        return rows.reshape(*input.shape, self.embedding_dim).to(self.dtype)


class EmbeddingBag(Table, floats=nn.EmbeddingBag, operator="embedding_bag"):
    """Sums, means or maxima of rows of a table; it returns floats of the dtype that it had.

    Example:
        >>> import octavo
        >>> bag = nn.EmbeddingBag(100, 8, mode="sum")
        >>> q = EmbeddingBag.from_float(bag, octavo.weight_only_qconfig())
        >>> q(torch.tensor([1, 2, 4, 5, 4]), torch.tensor([0, 3])).shape
        torch.Size([2, 8])
    """

    settings = (*Table.settings, "mode", "include_last_offset")

    mode: str
    include_last_offset: bool

    def compute(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        ends, mode = self.include_last_offset, self.mode
        if per_sample_weights is not None and (
            mode != "sum" or per_sample_weights.shape != input.shape
        ):
            raise InputError(
                f"per_sample_weights {list(per_sample_weights.shape)} for indices "
                f'{list(input.shape)}, mode="{mode}": they are for mode="sum", one for each index'
            )
        if input.dim() == 2:
            if offsets is not None:
                raise InputError("indices [bags, n] need no offsets: leave them out")
            offsets, ends = torch.arange(len(input), device=input.device) * input.shape[1], False
        elif input.dim() != 1 or offsets is None:
            raise InputError(
                f"indices are [bags, n], or [n] with offsets of the bags, not {list(input.shape)}"
            )
        indices = input.reshape(-1)
        factors = None if per_sample_weights is None else per_sample_weights.reshape(-1).float()
        arguments = (offsets.to(torch.int64), _MODES.index(mode), factors, ends, self.padding_idx)
        result: Tensor = bags(self.rows(indices), indices.to(torch.int64), *arguments)[0]
        return result.to(self.dtype)


_MODES = ("sum", "mean", "max")
