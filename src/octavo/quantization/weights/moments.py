"""What methods want to know of a linear layer's input: ``E[x^2]``, ``E[x x^T]``, ``max |x|``.

Each can tell what it would be had the input been scaled.

Tested in tests/quantization/weights/test_gptq.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.quantization.weights.bias_correction import Average


@dataclass(frozen=True)
class MeanSquare:
    """The statistic ``E[x^2]`` of each index of the last axis."""

    def update(self, state: Average | None, x: Tensor) -> Average:
        rows = x.reshape(-1, x.shape[-1]).to(torch.float32)
        return _with(state, rows.square().mean(0), len(rows))

    def merge(self, one: Average, other: Average) -> Average:
        return merged(one, other)

    def scaled(self, state: Average, factors: Tensor) -> Average:
        """The state of an input whose channels are multiplied by these."""
        return Average(state.mean * factors.square(), state.values)


@dataclass(frozen=True)
class SecondMoments:
    """The statistic ``E[x x^T]`` of the last axis, ``[in, in]``."""

    def update(self, state: Average | None, x: Tensor) -> Average:
        rows = x.reshape(-1, x.shape[-1]).to(torch.float32)
        return _with(state, rows.t() @ rows / max(len(rows), 1), len(rows))

    def merge(self, one: Average, other: Average) -> Average:
        return merged(one, other)

    def scaled(self, state: Average, factors: Tensor) -> Average:
        """The state of an input whose channels are multiplied by these."""
        return Average(state.mean * factors * factors[:, None], state.values)


@dataclass(frozen=True)
class Largest:
    """The statistic ``max |x|`` of each index of the last axis, float32 ``[in]``."""

    def update(self, state: Tensor | None, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).abs().to(torch.float32)
        new = rows.amax(0) if len(rows) else rows.new_zeros(rows.shape[1])
        return new if state is None else self.merge(state, new)

    def merge(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.maximum(one, other)

    def scaled(self, state: Tensor, factors: Tensor) -> Tensor:
        """The state of an input whose channels are multiplied by these."""
        return state * factors


def _with(state: Average | None, mean: Tensor, values: int) -> Average:
    if values == 0:
        return Average(torch.zeros_like(mean), 0) if state is None else state
    new = Average(mean, values)
    return new if state is None else merged(state, new)


def merged(one: Average, other: Average) -> Average:
    """The mean of both."""
    values = one.values + other.values
    return Average(torch.lerp(one.mean, other.mean, other.values / max(values, 1)), values)
