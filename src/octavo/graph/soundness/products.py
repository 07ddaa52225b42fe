"""How many multiply-adds an operator does, from the shapes of its arguments and its result.

A product and the addition of it to a sum count as one. What reads no weights and is no product of
matrices (normalizations, sums, functions, lookups) counts as none, but for transforms.

Tested in tests/graph/test_multiply_adds.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from octavo.graph.soundness.shapes.layers import einsum_sizes

# From an operator's arguments by name and its result, which may be on the meta device.
Count = Callable[[Mapping[str, Any], Any], int]


def _per_result(name: str, axis: int | None) -> Count:
    """Each value made reads an axis of an argument (without: all of its axes but the first)."""

    def count(values: Mapping[str, Any], result: Any) -> int:
        read = values[name]
        length = math.prod(read.shape[1:]) if axis is None else ([1, *read.shape])[axis]
        return int(result.numel() * length)

    return count


def _per_value(values: Mapping[str, Any], result: Any) -> int:
    """Each value read is spread by a transposed kernel."""
    return int(values["input"].numel() * math.prod(values["weight"].shape[1:]))


def _convolution(values: Mapping[str, Any], result: Any) -> int:
    return (_per_value if values["transposed"] else _per_result("weight", None))(values, result)


def _tensordot(values: Mapping[str, Any], result: Any) -> int:
    sizes = values["self"].shape
    return int(result.numel() * math.prod(sizes[axis] for axis in values["dims_self"]))


def _bilinear(values: Mapping[str, Any], result: Any) -> int:
    return int(result.numel() * math.prod(values["weight"].shape[1:]))


def _attention(values: Mapping[str, Any], result: Any) -> int:
    """Scores of each query with each key, and the sum of values by them."""
    query, key, value = list(values.values())[:3]
    scores = math.prod(result.shape[:-1]) * key.shape[-2]
    return int(scores * (query.shape[-1] + value.shape[-1]))


def _recurrent(values: Mapping[str, Any], result: Any) -> int:
    """At each step every matrix is read once; a batch or a sequence may be the first axis."""
    sizes = values["input"].shape
    matrices = (weight for weight in values["params"] if weight.dim() == 2)
    return int(sizes[0] * sizes[1] * sum(matrix.numel() for matrix in matrices))


def _cell(values: Mapping[str, Any], result: Any) -> int:
    state = values["hx"][0] if isinstance(values["hx"], list | tuple) else values["hx"]
    return int(values["input"].numel() * len(values["w_ih"]) + state.numel() * len(values["w_hh"]))


def _contraction(values: Mapping[str, Any], result: Any) -> int:
    """The product of all sizes that have a letter: at most, where there are over two factors."""
    sizes, ellipsis = einsum_sizes(values["equation"], values["tensors"])
    is_product = len(values["tensors"]) > 1
    return math.prod((*sizes.values(), *ellipsis)) if is_product else 0


def _fourier(values: Mapping[str, Any], result: Any) -> int:
    """Of a fast transform: by convention ``2.5 n log2 n`` for ``n`` complex numbers."""
    whole = values["self"] if values["self"].is_complex() else result
    axes = values["dim"]
    dims = range(whole.dim()) if axes is None else [axes] if isinstance(axes, int) else axes
    length = math.prod(whole.shape[dim] for dim in dims)
    return int(2.5 * whole.numel() * math.log2(max(length, 1)))


_TRANSFORMS = ("fft", "rfft", "fft2", "rfft2", "fftn", "rfftn")
# By the operator's name, for all of its overloads.
MULTIPLY_ADDS: dict[str, Count] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _per_result("weight", None)),
    **{f"conv_transpose{n}d": _per_value for n in (1, 2, 3)},
    "convolution": _convolution,
    "linear": _per_result("input", -1),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot"), _per_result("self", -1)),
    "addmm": _per_result("mat1", -1),
    "addmv": _per_result("mat", -1),
    "baddbmm": _per_result("batch1", -1),
    "tensordot": _tensordot,
    "cdist": _per_result("x1", -1),
    "bilinear": _bilinear,
    **dict.fromkeys(("scaled_dot_product_attention", "attention"), _attention),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _cell),
    "einsum": _contraction,
    **{f"fft_{name}": _fourier for name in _TRANSFORMS},
    **{f"fft_i{name}": _fourier for name in _TRANSFORMS},
}
