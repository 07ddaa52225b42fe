"""Data and measures for tests of observers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Laplace, StudentT

from octavo.numerics.affine import QParams, broadcast, dequantize, qparams_of_range, quantize
from octavo.numerics.observers import Bounds, Observer
from octavo.numerics.scheme import Scheme

# "Practical Quantization in PyTorch" (pytorch.org, 2022) prints these two tensors, and what each of
# PyTorch's observers makes of them.
ARTICLE = [
    torch.tensor(
        [
            [-0.0590, 1.1674, 0.7119, -1.1270],
            [-1.3974, 0.5077, -0.5601, 0.0683],
            [-0.0929, 0.9473, 0.7159, -0.4574],
        ]
    ),
    torch.tensor(
        [
            [-0.0236, -0.7599, 1.0290, 0.8914],
            [-1.1727, -1.2556, -0.2271, 0.9568],
            [-0.2500, 1.4579, 1.4707, 0.4043],
        ]
    ),
]

SCHEMES = [
    Scheme("uint8"),
    Scheme("int8"),
    Scheme("uint8", symmetric=True),
    Scheme("int8", symmetric=True, narrow_range=True),
    Scheme("uint8", reduce_range=True),
    Scheme("int8", symmetric=True, reduce_range=True),
    Scheme("int8", symmetric=True, power_of_two=True),
    Scheme("uint4"),
    Scheme("int4", symmetric=True),
    Scheme("int16", symmetric=True),
]

DISTRIBUTIONS = {
    "normal": torch.randn,
    "laplace": lambda *shape: Laplace(0.0, 1.0).sample(shape),
    "lognormal": lambda *shape: torch.randn(*shape).exp(),
    "student t, 3 degrees": lambda *shape: StudentT(3.0).sample(shape),
    "cauchy": lambda *shape: StudentT(1.0).sample(shape),
    "relu": lambda *shape: torch.randn(*shape).relu(),
    "negative": lambda *shape: -torch.randn(*shape).exp(),
    "far from zero": lambda *shape: torch.randn(*shape) + 50,
    "bimodal": lambda *shape: torch.where(
        torch.rand(*shape) < 0.5, torch.randn(*shape) * 0.1 - 3, torch.randn(*shape) * 0.5 + 1
    ),
    "one outlier": lambda *shape: with_outlier(torch.randn(*shape), 100.0),
    "zeros and one value": lambda *shape: with_outlier(torch.zeros(*shape), 7.0),
    "256 levels": lambda *shape: torch.randint(0, 256, shape) / 255,
}


def with_outlier(x: Tensor, value: float) -> Tensor:
    x[..., 0] = value
    return x


def observed(
    observer: Observer, batches: list[Tensor], scheme: Scheme, axis: int | None = None
) -> Bounds:
    """The bounds after these batches."""
    state = None
    for batch in batches:
        state = observer.update(state, batch, axis)
    return observer.bounds(state, scheme)


def mean_squared_error(x: Tensor, p: QParams, axis: int | None = None) -> Tensor:
    """Of quantizing ``x``: float64, ``[]`` or ``[channels]``."""
    scale, zero_point = (broadcast(v, x.dim(), axis) for v in (p.scale, p.zero_point))
    q = quantize(x, scale, zero_point, p.scheme.qmin, p.scheme.qmax)
    errors = (dequantize(q, scale, zero_point) - x).to(torch.float64).square()
    return errors.mean() if axis is None else errors.movedim(axis, 0).flatten(1).mean(1)


def error_of(observer: Observer, x: Tensor, scheme: Scheme, axis: int | None = None) -> Tensor:
    """Mean squared error of quantizing ``x`` with the range that an observer finds in it."""
    bounds = observed(observer, [x], scheme, axis)
    return mean_squared_error(x, qparams_of_range(bounds.low, bounds.high, scheme), axis)
