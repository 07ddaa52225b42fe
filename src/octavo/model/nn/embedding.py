"""`Embedding`: a table of integers."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from octavo.errors import InputError
from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
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
        return Graph(inputs, self.tensors(), tuple(nodes), arguments, [Ref("result")])

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
        return self.results(indices.to(torch.int64))


class Embedding(Table):
    """A table, read by indices of any shape; it returns floats of the dtype that it had.

    Example:
        >>> import octavo
        >>> table = Embedding.from_float(nn.Embedding(100, 8), octavo.weight_only_qconfig())
        >>> table(torch.tensor([[1, 2], [3, 4]])).shape
        torch.Size([2, 2, 8])
    """

    floats = nn.Embedding
    operator = "embedding"

    def compute(self, input: Tensor) -> Tensor:
        rows = self.rows(input.reshape(-1))
        return rows.reshape(*input.shape, self.embedding_dim).to(self.dtype)
