"""GPTQ: one column of a weight after the other is rounded, and the columns that are still to come
take back what that does to the output (Frantar et al. 2023, arXiv:2210.17323).

With ``H = E[x x^T]`` the squared error of the output is ``tr(E H E^T)`` for an error ``E`` of the
weight. Two things are done otherwise than there. What is added to the diagonal of ``H``, so that
its inverse is stable, is a share of each entry itself: language models have a few inputs of a
hundred times the others' size, and a share of the mean is so large for the rest that nothing is
taken back at all. And columns come in the order of ``E[x^2]``, the largest first, while their
groups stay what they were.

A convolution is a linear layer on its windows, one for each group of its channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from octavo.errors import CalibrationError
from octavo.numerics.affine import QParams, dequantize, quantize
from octavo.quantization.weights.bias_correction import Average
from octavo.quantization.weights.layers import Layer, Rounded
from octavo.quantization.weights.method import WeightMethod
from octavo.quantization.weights.moments import SecondMoments
from octavo.quantization.weights.patches import PatchMoments

_BLOCK = 64  # columns between which errors are passed on at once
_SMALLEST = 1e-8  # entry of the diagonal, as a share of their mean: inputs that are always zero


@dataclass(frozen=True)
class GPTQ(WeightMethod):
    """Errors of a column are taken back by the columns behind it.

    It is for weight-only linear layers, and for static ones and convolutions in two dimensions. It
    keeps the scales of the methods before it: give `octavo.Clip` first where there are few bits.

    Args:
        damping: the share of itself that each entry of the diagonal of ``E[x x^T]`` gets more.
        most_inputs: layers that read more inputs for an output are left as they are, since
            ``E[x x^T]`` has the square of their number, of each layer of a graph at once: 10 GB
            behind 50,000 inputs. ``None``: all are rounded.

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
    most_inputs: int | None = None

    def fits(self, layer: Layer) -> bool:
        if self.most_inputs is not None and layer.weight[0].numel() > self.most_inputs:
            return False
        if layer.node.short_op == "conv2d":
            return layer.runs == "int8"
        return layer.node.short_op == "linear" and layer.runs in ("int8", "weight_only")

    def statistic(self, layer: Layer) -> SecondMoments | PatchMoments:
        return PatchMoments.of(layer) if layer.node.short_op == "conv2d" else SecondMoments()

    def doubt(self, layer: Layer, seen: Average) -> str | None:
        if seen.values >= layer.weight.shape[1]:
            return None
        return (
            f"{seen.values} rows of data are fewer than the {layer.weight.shape[1]} inputs, so "
            "that errors are taken back for these rows more than for others, as far as damping "
            "lets them: give more data"
        )

    def round(self, layer: Layer, now: Rounded, seen: Average) -> Rounded:
        if not bool(torch.isfinite(seen.mean).all()):
            raise CalibrationError(
                f"{layer.name!r} reads values whose squares float32 does not hold, which GPTQ "
                "needs: scale the data, or leave it out of weights="
            )
        windows = layer.weight.flatten(1)
        integers = gptq(windows, seen.mean, now.qparams, self.damping)
        shaped = integers.reshape(layer.weight.shape)
        return replace(now, integers=shaped.to(now.integers.dtype))


def gptq(weight: Tensor, moments: Tensor, qparams: QParams, damping: float) -> Tensor:
    """The integers of a weight, as floats ``[rows, columns]``.

    Args:
        weight: float ``[rows, columns]``.
        moments: ``E[x x^T]``, float ``[columns, columns]``; or ``[groups, columns, columns]``, of
            so many groups of neighbouring rows, each of which has inputs of its own.
        qparams: of the weight.
        damping: see `GPTQ`.
    """
    scheme, (rows, columns) = qparams.scheme, weight.shape
    moments = moments.to(torch.float32).reshape(-1, columns, columns)

    def in_order(values: Tensor) -> Tensor:
        """``[columns, groups, rows]``, in the order in which columns come."""
        parts = values.reshape(len(moments), -1, columns)
        return parts.gather(2, order.unsqueeze(1).expand_as(parts)).permute(2, 0, 1).contiguous()

    order = moments.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    left = in_order(weight.detach().to(torch.float32))
    by_row = moments.gather(1, order.unsqueeze(2).expand_as(moments))
    inverse = _inverse(by_row.gather(2, order.unsqueeze(1).expand_as(moments)), damping)
    # Of a column's error, what each column behind it takes back.
    share = inverse / inverse.diagonal(dim1=1, dim2=2).unsqueeze(2)
    shares = share.permute(1, 2, 0).unsqueeze(3).contiguous()
    scales, zero_points = (
        in_order(_by_column(values, qparams, rows, columns)).unbind()
        for values in (qparams.scale, qparams.zero_point)
    )
    integers, errors = torch.empty_like(left), torch.empty_like(left)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        for at in range(start, stop):
            scale, zero_point, column = scales[at], zero_points[at], left[at]
            rounded = quantize(column, scale, zero_point, scheme.qmin, scheme.qmax)
            error = column - dequantize(rounded, scale, zero_point)
            integers[at], errors[at] = rounded, error
            left[at + 1 : stop].addcmul_(shares[at, at + 1 : stop], error, value=-1)
        behind = share[:, start:stop, stop:].transpose(1, 2)
        left[stop:].transpose(0, 1).baddbmm_(behind, errors[start:stop].transpose(0, 1), alpha=-1)
    found = integers.permute(1, 2, 0)
    in_place = torch.empty_like(found).scatter_(2, order.unsqueeze(1).expand_as(found), found)
    return in_place.reshape(rows, columns)


def _inverse(moments: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factors of the inverses of moments ``[groups, columns, columns]``.

    All is done on correlations, whose diagonal is one: with inputs of any size side by side the
    moments themselves are no longer positive in 24 bits.
    """
    diagonal = moments.diagonal(dim1=1, dim2=2)
    smallest = diagonal.mean(1, keepdim=True) * _SMALLEST
    smallest = smallest.clamp(min=torch.finfo(diagonal.dtype).tiny)
    size = (torch.maximum(diagonal, smallest) * (1 + damping)).sqrt()
    correlations = moments / size.unsqueeze(1) / size.unsqueeze(2)
    correlations.diagonal(dim1=1, dim2=2).fill_(1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(correlations.double()))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return (factor / size.double().unsqueeze(1)).to(moments.dtype)


def _by_column(values: Tensor, qparams: QParams, rows: int, columns: int) -> Tensor:
    """A scale or zero point for each value of the weight, ``[rows, columns]``."""
    own = qparams.of_rank(2)[0 if values is qparams.scale else 1]
    repeats = columns // own.shape[1] if own.shape[1] > 1 else columns
    return own.to(torch.float32).repeat_interleave(repeats, 1).expand(rows, columns)
