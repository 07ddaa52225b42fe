"""GPTQ: one column of a weight after the other is rounded, and the columns that are still to come
take back what that does to the output (Frantar et al. 2023, arXiv:2210.17323).

With ``H = E[x x^T]`` the squared error of the output is ``tr(E H E^T)`` for an error ``E`` of the
weight. Two things are done otherwise than there. What is added to the diagonal of ``H``, so that
its inverse is stable, is a share of each entry itself: language models have a few inputs of a
hundred times the others' size, and a share of the mean is so large for the rest that nothing is
taken back at all. And columns come in the order of ``E[x^2]``, the largest first, while their
groups stay what they were.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from octavo.numerics.affine import QParams, dequantize, quantize
from octavo.quantization.weights.bias_correction import Average
from octavo.quantization.weights.layers import Layer, Rounded
from octavo.quantization.weights.method import WeightMethod
from octavo.quantization.weights.moments import SecondMoments

_BLOCK = 64  # columns between which errors are passed on at once
_SMALLEST = 1e-8  # entry of the diagonal, as a share of their mean: inputs that are always zero


@dataclass(frozen=True)
class GPTQ(WeightMethod):
    """Errors of a column are taken back by the columns behind it.

    It is for weight-only linear layers, and keeps the scales of the methods before it: give
    `octavo.Clip` first.

    Args:
        damping: the share of itself that each entry of the diagonal of ``E[x x^T]`` gets more.

    Example:
        >>> layer = torch.nn.Linear(64, 8)
        >>> q = octavo.quantize(
        ...     layer,
        ...     calibration=[torch.randn(256, 64)],
        ...     qconfig=octavo.weight_only_qconfig(4, group_size=32),
        ...     weights=[octavo.Clip(), octavo.GPTQ()],
        ... )
        >>> q.provenance["weights"]
        'clip, gptq'
    """

    name: ClassVar[str] = "gptq"

    damping: float = 0.01

    def fits(self, layer: Layer) -> bool:
        return layer.runs == "weight_only" and layer.node.short_op == "linear"

    def statistic(self, layer: Layer) -> SecondMoments:
        return SecondMoments()

    def doubt(self, layer: Layer, seen: Average) -> str | None:
        if seen.values >= layer.weight.shape[1]:
            return None
        return (
            f"{seen.values} rows of data are fewer than the {layer.weight.shape[1]} inputs, so "
            "that errors are taken back for these rows more than for others, as far as damping "
            "lets them: give more data"
        )

    def round(self, layer: Layer, now: Rounded, seen: Average) -> Rounded:
        integers = gptq(layer.weight, seen.mean, now.qparams, self.damping)
        return replace(now, integers=integers.to(now.integers.dtype))


def gptq(weight: Tensor, moments: Tensor, qparams: QParams, damping: float) -> Tensor:
    """The integers of a weight, as floats ``[rows, columns]``.

    Args:
        weight: float ``[rows, columns]``.
        moments: ``E[x x^T]``, float ``[columns, columns]``.
        qparams: of the weight.
        damping: see `GPTQ`.
    """
    scheme, (rows, columns) = qparams.scheme, weight.shape
    order = moments.diagonal().argsort(descending=True, stable=True)
    left = weight.detach().to(torch.float32)[:, order].clone()
    inverse = _inverse(moments.to(torch.float32)[order][:, order], damping)
    scales, zero_points = (
        _by_column(values, qparams, rows, columns)[:, order]
        for values in (qparams.scale, qparams.zero_point)
    )
    integers = torch.empty_like(left)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = left.new_empty(rows, stop - start)
        for at in range(start, stop):
            scale, zero_point, column = scales[:, at], zero_points[:, at], left[:, at]
            rounded = quantize(column, scale, zero_point, scheme.qmin, scheme.qmax)
            error = (column - dequantize(rounded, scale, zero_point)) / inverse[at, at]
            integers[:, at], errors[:, at - start] = rounded, error
            left[:, at:stop].addr_(error, inverse[at, at:stop], alpha=-1)
        left[:, stop:].addmm_(errors, inverse[start:stop, stop:], alpha=-1)
    return torch.empty_like(integers).index_copy_(1, order, integers)


def _inverse(moments: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of the moments.

    All is done on correlations, whose diagonal is one: with inputs of any size side by side the
    moments themselves are no longer positive in 24 bits.
    """
    diagonal = moments.diagonal().clone()
    smallest = (diagonal.mean() * _SMALLEST).clamp(min=torch.finfo(diagonal.dtype).tiny)
    size = diagonal.clamp(min=smallest).mul_(1 + damping).sqrt_()
    correlations = moments / size / size[:, None]
    correlations.diagonal().fill_(1.0)
    lower = torch.linalg.cholesky(correlations.double())
    inverse = torch.cholesky_inverse(lower)
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return (factor / size.double()).to(moments.dtype)


def _by_column(values: Tensor, qparams: QParams, rows: int, columns: int) -> Tensor:
    """A scale or zero point for each value of the weight, ``[rows, columns]``."""
    own = qparams.of_rank(2)[0 if values is qparams.scale else 1]
    repeats = columns // own.shape[1] if own.shape[1] > 1 else columns
    return own.to(torch.float32).repeat_interleave(repeats, 1).expand(rows, columns)
