"""How much memory and time the graph of a file may take, by what the file itself holds.

A graph of some kilobytes can name a tensor of a terabyte, or a product that takes a week. What
honest models take grows with their weights and inputs, so that is what the limits are measured by.
Both are far above what real models need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Graph
from octavo.graph.soundness.products import MULTIPLY_ADDS, Count
from octavo.graph.soundness.schemas import MOST_DIMENSIONS
from octavo.graph.soundness.shapes.common import broadcast

# Of results that are needed at the same time: what any file may take, and more by what it declares
# (weights, and inputs at the sizes they were captured with).
LEAST_BYTES, BYTES_PER_BYTE = 2**28, 2**10
# Of multiplications and additions, likewise.
LEAST_WORK, WORK_PER_BYTE = 2**34, 2**16
MOST_INPUT_BYTES = 2**32  # of the captured example
_OPEN = 64  # what an open size counts at most
_CALL = 2**12  # what a kernel takes before it computes anything


@dataclass
class Budget:
    """What is left of the work, and how many bytes may be needed at once."""

    bytes: int
    work: int

    @classmethod
    def of(cls, graph: Graph, tensors: Mapping[str, Tensor]) -> Budget:
        """For a graph with these inputs (at the sizes of their examples) and constants.

        An open size counts little, whatever the example says: it costs a file nothing to say much.

        Raises:
            ValueError: the examples themselves are too large.
        """
        inputs = [tensors[one.name] for one in graph.inputs]
        if sum(map(_bytes, inputs)) > MOST_INPUT_BYTES:
            raise ValueError(f"was captured with more than {MOST_INPUT_BYTES} bytes of inputs")
        declared = sum(_bytes(tensors[name]) for name in graph.constants)
        for one, tensor in zip(graph.inputs, inputs, strict=True):
            sizes = zip(one.meta.shape, tensor.shape, strict=True)
            counted = (min(s, _OPEN) if declared_ is None else s for declared_, s in sizes)
            declared += math.prod(counted) * tensor.element_size()
        return cls(LEAST_BYTES + BYTES_PER_BYTE * declared, LEAST_WORK + WORK_PER_BYTE * declared)

    def spend(self, result: Any, cost: tuple[int, int]) -> None:
        """Take an operator's share: of its result, and as `cost_of` says.

        Raises:
            ValueError: there is not enough.
        """
        tensors = [item for item in _listed(result) if isinstance(item, Tensor)]
        if any(tensor.dim() > MOST_DIMENSIONS for tensor in tensors):
            raise ValueError(f"makes a tensor of more than {MOST_DIMENSIONS} axes")
        work, meanwhile = cost
        needed = sum(map(_bytes, tensors)) + meanwhile
        if needed > self.bytes:
            raise ValueError(f"needs {needed} bytes, of {self.bytes} that such a file may take")
        self.work -= work
        if self.work < 0:
            raise ValueError("takes more operations than such a file may")

    def check_together(self, graph: Graph, values: Mapping[str, Any]) -> None:
        """Look at what is needed at the same time.

        Raises:
            ValueError: it is too much.
        """
        last = {name: index for index, node in enumerate(graph.nodes) for name in node.refs()}
        last |= dict.fromkeys(graph.output_names(), len(graph.nodes))
        ends: dict[int, int] = {}
        alive = 0
        for index, node in enumerate(graph.nodes):
            size = sum(_bytes(t) for t in _listed(values[node.name]) if isinstance(t, Tensor))
            alive += size
            if alive > self.bytes:
                raise ValueError(f"needs {alive} bytes, of {self.bytes} that such a file may take")
            end = max(index, last.get(node.name, index))
            ends[end] = ends.get(end, 0) + size
            alive -= ends.get(index, 0)


def cost_of(name: str, values: Mapping[str, Any], result: Any) -> tuple[int, int]:
    """Operations (a value that is read or made counts as one), and bytes needed meanwhile."""
    items = [item for value in values.values() for item in _listed(value)]
    tensors = [t for t in (*items, *_listed(result)) if isinstance(t, Tensor)]
    work = sum(tensor.numel() for tensor in tensors)
    work += int(_PRODUCTS[name](values, result) if name in _PRODUCTS else 0)
    extra = int(_TEMPORARY[name](values, result) if name in _TEMPORARY else 0)
    return work, extra * max((tensor.element_size() for tensor in tensors), default=1)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _columns(values: Mapping[str, Any], result: Any) -> int:
    """Kernels of float64 write each window down."""
    if values["input"].dtype != torch.float64:
        return 0
    windows = MULTIPLY_ADDS["convolution"](dict(values, transposed=False), result)
    return windows // max(1, len(values["weight"]))


def _scores(values: Mapping[str, Any], result: Any) -> int:
    return int(math.prod(result.shape[:-1]) * list(values.values())[1].shape[-2])


def _windows(values: Mapping[str, Any], result: Any) -> int:
    kernel = _listed(values["kernel_size"])
    area = math.prod(kernel) if len(kernel) > 1 else kernel[0] ** 3
    return int(_listed(result)[0].numel() * area)


def _steps(values: Mapping[str, Any], result: Any) -> int:
    sizes = values["input"].shape
    of_a_step = sum(weight.numel() + _CALL for weight in values["params"])
    return int(sizes[0] * sizes[1] * of_a_step)


def _gates(values: Mapping[str, Any], result: Any) -> int:
    sizes = values["input"].shape
    return int(sizes[0] * sizes[1] * sum(len(weight) for weight in values["params"]))


def _pairs(values: Mapping[str, Any], result: Any) -> int:
    """A value for each pair along the axis that is gone from the result."""
    tensors = [value for value in values.values() if isinstance(value, Tensor)]
    return int(result.numel() * max(max(tensor.shape, default=1) for tensor in tensors))


def _expanded(values: Mapping[str, Any], result: Any) -> int:
    """Matrices of which one is used for a batch of others are copied."""
    a, b = list(values.values())[:2]
    if a.dim() < 2 or b.dim() < 2:
        return 0
    return int(math.prod(result.shape[:-2]) * (math.prod(a.shape[-2:]) + math.prod(b.shape[-2:])))


def _compared(values: Mapping[str, Any], result: Any) -> int:
    """Losses of pairs: a value for each, before they are reduced."""
    return math.prod(broadcast(values["self"].shape, values["target"].shape))


def _singular(values: Mapping[str, Any], result: Any) -> int:
    x = values["self"]
    return int(x.numel() * max(x.shape, default=1))


_LOSSES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
_PRODUCTS: dict[str, Count] = {
    **MULTIPLY_ADDS,
    **{f"{kind}_pool{n}d": _windows for kind in ("max", "avg") for n in (1, 2, 3)},
    "max_pool2d_with_indices": _windows,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _steps),
    **dict.fromkeys(("linalg_norm", "linalg_matrix_norm"), _singular),
    **dict.fromkeys(_LOSSES, _compared),
}
_TEMPORARY: dict[str, Count] = {
    **{f"conv{kind}{n}d": _columns for kind in ("", "_transpose") for n in (1, 2, 3)},
    "convolution": _columns,
    "matmul": _expanded,
    **dict.fromkeys(("scaled_dot_product_attention", "attention"), _scores),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _gates),
    **dict.fromkeys(("cosine_similarity", "pairwise_distance", "bilinear"), _pairs),
    **dict.fromkeys(_LOSSES, _compared),
    "einsum": lambda values, result: (
        MULTIPLY_ADDS["einsum"](values, result) if len(values["tensors"]) > 2 else 0
    ),
}
