"""Clipped ranges: few bits round a weight better where the largest values are cut off.

Of each channel or group parts of its range are tried, and the one is taken whose rounding costs
least: ``sum E[x^2] (w - w')^2``, which is the error of the layer's output where its inputs are not
correlated (Lin et al. 2024, AWQ, arXiv:2306.00978, clips so too).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from octavo.numerics.affine import (
    QParams,
    blocks,
    dequantize,
    quantize,
    quantized,
    unchecked_qparams,
)
from octavo.quantization.weights.bias_correction import Average
from octavo.quantization.weights.layers import Layer, Rounded
from octavo.quantization.weights.method import WeightMethod
from octavo.quantization.weights.moments import MeanSquare
from octavo.quantization.weights.patches import PatchMoments

# Beyond one: the scales of a symmetric range of an even number of integers end half a step short.
PARTS = tuple(1.05 - 0.025 * step for step in range(27))


@dataclass(frozen=True)
class Clip(WeightMethod):
    """The range of each channel or group at which its rounding costs the output least.

    It is for weights with a scale for each channel or group: of weight-only layers and tables, and
    of fewer than eight bits of all other layers but transposed convolutions. At eight bits their
    kernels may need the room that the scales leave.

    Args:
        by_input: weigh the errors of linear layers, and of convolutions in two dimensions, by the
            mean square of the input that each weight meets, which needs calibration data; without
            it all count alike.

    Example:
        >>> layer = torch.nn.Linear(64, 8)
        >>> q = octavo.quantize(
        ...     layer,
        ...     calibration=[torch.randn(32, 64)],
        ...     qconfig=octavo.weight_only_qconfig(4, group_size=32),
        ...     weights=[octavo.Clip()],
        ... )
        >>> q.provenance["weights"]
        'clip, bias_correction'
    """

    name: ClassVar[str] = "clip"

    by_input: bool = True

    def fits(self, layer: Layer) -> bool:
        scheme, in_rows = layer.scheme, layer.layout.output_axis == 0
        has_rows = scheme.group_size is not None or scheme.channel_axis == 0
        return in_rows and has_rows and (layer.runs == "weight_only" or scheme.integers.bits < 8)

    def statistic(self, layer: Layer) -> MeanSquare | PatchMoments | None:
        if not self.by_input or layer.node.short_op not in ("linear", "conv2d"):
            return None
        return MeanSquare() if layer.node.short_op == "linear" else PatchMoments.of(layer)

    def round(self, layer: Layer, now: Rounded, seen: Average | None) -> Rounded:
        importance = None if seen is None else seen.mean
        if importance is not None and layer.node.short_op == "conv2d":
            importance = importance.diagonal(dim1=1, dim2=2)
        qparams = clipped(layer.weight.flatten(1), now.qparams, importance)
        return replace(now, integers=quantized(layer.weight, qparams), qparams=qparams)


def clipped(weight: Tensor, qparams: QParams, importance: Tensor | None) -> QParams:
    """The scales, among those of parts of the ranges, at which rounding costs least.

    Args:
        weight: float ``[rows, columns]``.
        qparams: of it, by channel or group.
        importance: of each column, float ``[columns]``; or ``[groups, columns]``, of so many groups
            of neighbouring rows. All are alike without.
    """
    scheme = qparams.scheme
    rows = blocks(weight.detach().to(torch.float32), scheme)[0]
    low, high = rows.amin(1), rows.amax(1)
    factors = torch.ones_like(rows[:1]) if importance is None else _beside(importance, rows, weight)
    least = torch.full_like(low, torch.inf)
    best = unchecked_qparams(low, high, scheme)
    for part in PARTS:
        tried = unchecked_qparams(low * part, high * part, scheme)
        scale, zero_point = tried.scale[:, None], tried.zero_point[:, None]
        integers = quantize(rows, scale, zero_point, scheme.qmin, scheme.qmax)
        cost = (dequantize(integers, scale, zero_point) - rows).square_().mul_(factors).sum(1)
        better = cost < least
        least = torch.where(better, cost, least)
        best = QParams(
            torch.where(better, tried.scale, best.scale),
            torch.where(better, tried.zero_point, best.zero_point),
            scheme,
        )
    shape = qparams.scale.shape
    return QParams(best.scale.reshape(shape), best.zero_point.reshape(shape), scheme)


def _beside(importance: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """What each value of the rows counts, in a shape that broadcasts."""
    groups = importance.to(rows).reshape(-1, weight.shape[1])
    if len(groups) == 1 and rows.shape[1] == weight.shape[1]:
        return groups
    return groups.repeat_interleave(len(weight) // len(groups), 0).reshape(rows.shape)
