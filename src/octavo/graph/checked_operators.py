"""Operators whose kernels trust their arguments: here they are checked at every call.

A graph's shapes are checked when it is loaded, at the sizes it was captured with. Other sizes and
the values in tensors are only known when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Guarded:
    """An operator that first looks at its arguments, given as the operator takes them."""

    overload: Any
    check: Callable[..., None]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.check(*args, **kwargs)
        return self.overload(*args, **kwargs)

    @property
    def _schema(self) -> Any:
        return self.overload._schema


_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def check_recurrent(
    name: str,
    input: Tensor,
    hx: Any,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> None:
    """lstm, gru and rnn: oneDNN's kernels look at the first weights only.

    Raises:
        ValueError: sequences, states and weights do not fit each other.
    """
    states = list(hx) if name == "lstm" else [hx]
    tensors = [input, *states, *params]
    if len(states) != 1 + (name == "lstm") or any(t.dim() != 3 for t in (input, *states)):
        raise ValueError("sequences or states of other axes")
    if any(t.dtype != input.dtype for t in tensors) or not input.is_floating_point():
        raise ValueError(
            f"sequences, states and weights of {sorted({str(t.dtype) for t in tensors})}"
        )
    batch, steps = input.shape[:2] if batch_first else (input.shape[1], input.shape[0])
    hidden, out, directions = states[-1].shape[2], states[0].shape[2], 1 + bidirectional
    fits = all(list(state.shape[:2]) == [num_layers * directions, batch] for state in states)
    if min(num_layers, steps, hidden, out) < 1 or not fits:
        raise ValueError("states that do not fit the sequences and layers")
    rows, expected = _GATES[name] * hidden, []
    for layer in range(min(num_layers, len(params))):
        columns = directions * out if layer else input.shape[2]
        of_one = [(rows, columns), (rows, out), *[(rows,)] * (2 * has_biases)]
        expected += [*of_one, *[(out, hidden)] * bool(out != hidden)] * directions
    if [tuple(weight.shape) for weight in params] != expected:
        raise ValueError("weights that do not fit")


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> None:
    """The kernel writes a norm for each slice of ``v`` into memory of the size of ``g``."""
    if not v.numel():
        raise ValueError("no values")
    expected = [size if axis == dim else 1 for axis, size in enumerate(v.shape)]
    whole = dim == -1 and g.dim() == 0  # one norm of all of ``v``
    if not (whole or list(g.shape) == expected) or v.dtype != g.dtype:
        raise ValueError(f"a norm of shape {list(g.shape)} where {expected} is expected")


def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> None:
    """The kernels read from where offsets and indices say."""
    if weight.dim() != 2 or indices.dim() != 1 or offsets.dim() != 1 or mode not in (0, 1, 2):
        raise ValueError("a table, indices or offsets of other axes, or another mode")
    if per_sample_weights is not None and per_sample_weights.shape != indices.shape:
        raise ValueError("not one weight for each index")
    bags = len(offsets) - include_last_offset
    if bags < 0 or (bags == 0 and len(indices)):
        raise ValueError(f"{len(offsets)} offsets make no bag for {len(indices)} indices")
    if weight.is_meta:
        return
    places = [0, *offsets.tolist(), len(indices)]
    if places != sorted(places):
        raise ValueError("offsets that are not in order, or beyond the indices")
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(weight):
        raise ValueError(f"indices beyond a table of {len(weight)} rows")


def _batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> None:
    """The kernel reads a value for each channel from all of them."""
    for values in (weight, bias, running_mean, running_var):
        if input.dim() < 2 or (values is not None and values.shape != input.shape[1:2]):
            raise ValueError("not one value for each channel")


def _group_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    N: int,
    C: int,
    HxW: int,
    group: int,
    eps: float,
) -> None:
    """The kernel reads as many values as these numbers say."""
    if min(N, C, HxW, group) < 1 or N * C * HxW != input.numel() or C % group:
        raise ValueError(f"{N} x {C} x {HxW} values in {group} groups for {list(input.shape)}")
    if any(values is not None and values.shape != (C,) for values in (weight, bias)):
        raise ValueError("not one value for each channel")


# By the names that a graph gives them.
GUARDS: Mapping[str, Callable[..., None]] = {
    "aten._weight_norm.default": _weight_norm,
    "aten.embedding_bag.default": _embedding_bag,
    "aten.embedding_bag.padding_idx": _embedding_bag,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm,
    "aten.native_group_norm.default": _group_norm,
    **{f"aten.{name}.input": partial(check_recurrent, name) for name in _GATES},
}
