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

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from octavo.numerics.affine import QParams, dequantize, quantize
from octavo.numerics.native.columns import MOST_COLUMNS, Columns
from octavo.quantization.weights.layers import Rounded
from octavo.quantization.weights.outputs_kept import KeepsOutputs, by_column

_SMALLEST = 1e-8  # entry of the diagonal, as a share of their mean: inputs that are always zero


@dataclass(frozen=True)
class GPTQ(KeepsOutputs):
    """Errors of a column are taken back by the columns behind it.

    It is for linear layers, and for static convolutions in two dimensions. It
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
        'clip, gptq, bias_correction'
    """

    name: ClassVar[str] = "gptq"

    damping: float = 0.01
    most_inputs: int | None = None

    def integers(self, weight: Tensor, moments: Tensor, now: Rounded) -> Tensor:
        return gptq(weight, moments, now.qparams, self.damping)


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
        in_order(by_column(values, qparams, rows, columns))
        for values in (qparams.scale, qparams.zero_point)
    )
    integers, errors = torch.empty_like(left), torch.empty_like(left)
    ends = (scheme.qmin, scheme.qmax)
    work = Columns(left, integers, errors, scales, zero_points, shares, *ends)
    for start in range(0, columns, MOST_COLUMNS):
        stop = min(start + MOST_COLUMNS, columns)
        if work.has_kernel:
            work.round(start, stop)
        else:
            _round(work, start, stop)
        behind = share[:, start:stop, stop:].transpose(1, 2)
        left[stop:].transpose(0, 1).baddbmm_(behind, errors[start:stop].transpose(0, 1), alpha=-1)
    found = integers.permute(1, 2, 0)
    in_place = torch.empty_like(found).scatter_(2, order.unsqueeze(1).expand_as(found), found)
    return in_place.reshape(rows, columns)


def _round(work: Columns, start: int, stop: int) -> None:
    """`Columns.round`, wherever torch runs."""
    for at in range(start, stop):
        scale, zero_point, column = work.scales[at], work.zero_points[at], work.left[at]
        rounded = quantize(column, scale, zero_point, work.lowest, work.highest)
        error = column - dequantize(rounded, scale, zero_point)
        work.integers[at], work.errors[at] = rounded, error
        behind = slice(at + 1, stop)
        work.left[behind].addcmul_(work.shares[at, behind], error, value=-1)


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
