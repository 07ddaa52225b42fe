"""HQQ, half-quadratic quantization: scales and zero points at which most weights round well, and a
few may round badly (Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning
Models", dropbox.github.io/hqq_blog).

Of each channel or group ``sum |w - w'|^p`` is made small, with ``p < 1``, so that outliers count
little. It is split in two (equation 3 there) by an error ``e`` that is only pulled towards
``w - w'``: ``sum |e|^p + beta / 2 (e - (w - w'))^2``, and each part is solved in turn while
``beta`` grows:

- ``e`` by a soft threshold (eq. 5): ``sign(x) max(0, |x| - |x|^(p - 1) / beta)``, ``x = w - w'``;
- the zero point by a mean (eq. 6): ``mean(q - (w - e) / s)``;
- and, which is not there, the scale by least squares: ``<q - z, w - e> / <q - z, q - z>``. Zero
  points are integers here, of which the nearest is rarely another one, and symmetric schemes have
  none.

Errors are counted in steps of the first scale, so that ``beta`` means the same for weights of any
size. Of all rounds the best is kept, group by group: none is worse than what rounding to nearest
began with.

Tested in tests/quantization/weights/test_hqq.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from octavo.arguments import COUNT, Kind, expect
from octavo.numerics.affine import QParams, blocks, dequantize, quantize, quantized
from octavo.quantization.weights.layers import Layer, Rounded
from octavo.quantization.weights.method import WeightMethod

_ABOVE_ZERO = Kind(lambda n: isinstance(n, int | float) and n > 0, "give a number above 0")
_GROWTH = 1.01  # of beta, in each round
_SMALLEST = 1e-8  # error of which a negative power is taken


@dataclass(frozen=True)
class HQQ(WeightMethod):
    """Scales and zero points for most of the weights, without data.

    It is for weight-only linear layers and tables with a scale for each channel or group, and
    brings more where zero points are free (``symmetric=False``).

    Args:
        power: of the norm that is made small; below one outliers count less.
        beta: how much the error is pulled towards the real one, at the start.
        rounds: at most.

    Raises:
        InputError: a number is not above 0.

    Example:
        >>> layer = torch.nn.Linear(64, 8)
        >>> four = octavo.weight_only_qconfig(4, group_size=32, symmetric=False)
        >>> q = octavo.quantize(
        ...     layer, mode="weight_only", scope="modules", qconfig=four, weights=[octavo.HQQ()]
        ... )
    """

    name: ClassVar[str] = "hqq"

    power: float = 0.7
    beta: float = 10.0
    rounds: int = 20

    def __post_init__(self) -> None:
        expect(COUNT, rounds=self.rounds)
        expect(_ABOVE_ZERO, power=self.power, beta=self.beta)

    def fits(self, layer: Layer) -> bool:
        plain = layer.has_own_rows and not layer.scheme.power_of_two
        return layer.runs == "weight_only" and plain

    def round(self, layer: Layer, now: Rounded, seen: Any) -> Rounded:
        qparams = half_quadratic(layer.weight, now.qparams, self.power, self.beta, self.rounds)
        return replace(now, integers=quantized(layer.weight, qparams), qparams=qparams)


def half_quadratic(
    weight: Tensor, qparams: QParams, power: float, beta: float, rounds: int
) -> QParams:
    """The scales and zero points at which the norm of the error is least, of those of all rounds.

    Args:
        weight: float ``[rows, columns]``.
        qparams: of it, by channel or group: where it begins.
        power, beta, rounds: see `HQQ`.
    """
    scheme, shape = qparams.scheme, qparams.scale.shape
    first = qparams.scale.reshape(-1, 1).to(weight.device)
    x = blocks(weight.detach().to(torch.float32), scheme)[0] / first
    scale, zero = torch.ones_like(first), qparams.zero_point.reshape(-1, 1).to(first)
    best_scale, best_zero, least = scale, zero, torch.full_like(first, torch.inf)
    for _ in range(rounds + 1):
        q = quantize(x, scale, zero, scheme.qmin, scheme.qmax)
        error = x - dequantize(q, scale, zero)
        size = error.abs().clamp_(min=_SMALLEST)
        pull = size.pow(power - 1)
        cost = (size * pull).sum(1, keepdim=True)
        better = cost < least
        least = torch.where(better, cost, least)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
        wanted = x - error.sign() * (size - pull / beta).clamp_(min=0)
        if not scheme.symmetric:
            zero = (q - wanted / scale).mean(1, keepdim=True)
            zero = zero.round().clamp(scheme.qmin, scheme.qmax)
        steps = q - zero
        fitted = (steps * wanted).sum(1, keepdim=True) / steps.square().sum(1, keepdim=True)
        # A group of zeros has no scale, and one that is turned round none that is one.
        scale = torch.where(fitted > 0, fitted, scale)
        beta *= _GROWTH
    zero_point = best_zero.reshape(shape).to(torch.int32)
    return QParams((best_scale * first).reshape(shape), zero_point, scheme)
