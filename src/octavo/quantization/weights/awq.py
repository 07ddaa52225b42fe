"""AWQ: weights that meet large inputs are scaled up before they are rounded, and their inputs down
(Lin et al. 2024, arXiv:2306.00978).

With ``s = a^alpha``, ``a`` the size of each input channel, ``alpha`` is searched between 0 (nothing
is scaled) and 1 for the least error of the layers' outputs (equations 4 and 5 there):
``|| Q(W diag(s)) diag(s)^-1 X - W X ||^2``. With ``E = Q(W diag(s)) diag(s)^-1 - W`` that is
``tr(E H E^T)``, ``H = E[x x^T]``: so ``H`` is all that is kept of the data, and ``a`` is the root
of its diagonal, where the paper has the mean of ``|x|``.

Tested in tests/quantization/weights/test_awq.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from octavo.arguments import COUNT, expect
from octavo.numerics.affine import QParams, blocks, fake_quantize, unchecked_qparams
from octavo.quantization.weights.bias_correction import Average
from octavo.quantization.weights.layers import Layer
from octavo.quantization.weights.moments import SecondMoments
from octavo.quantization.weights.rescaling import Rescaling, together

_SMALLEST = 1e-4  # size of a channel, as a share of the largest


@dataclass(frozen=True)
class AWQ(Rescaling):
    """Scales of input channels at which rounding costs the outputs least.

    It is for weight-only linear layers of models in modules, behind a norm or a linear layer that
    can take the scales; it needs data, and comes before `octavo.Clip` and `octavo.GPTQ`.

    Args:
        steps: so many values of the exponent are tried, evenly from 0 on to below 1.

    Raises:
        InputError: ``steps`` is no whole number of 1 or more.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.LayerNorm(64), torch.nn.Linear(64, 8)).eval()
        >>> q = octavo.quantize(
        ...     net,
        ...     calibration=[torch.randn(256, 64)],
        ...     scope="modules",
        ...     mode="weight_only",
        ...     qconfig=octavo.weight_only_qconfig(4, group_size=32),
        ...     weights=[octavo.AWQ()],
        ... )
    """

    name: ClassVar[str] = "awq"

    steps: int = 20

    def __post_init__(self) -> None:
        expect(COUNT, steps=self.steps)

    def fits(self, layer: Layer) -> bool:
        is_linear = layer.node.short_op == "linear"
        return layer.runs == "weight_only" and is_linear and layer.has_own_rows

    def statistic(self, layer: Layer) -> SecondMoments:
        return SecondMoments()

    def scales(self, layers: Sequence[Layer], seen: Average, shared: Tensor) -> Tensor:
        moments = seen.mean
        square = moments.diagonal()
        smallest = square.max().clamp(min=torch.finfo(square.dtype).tiny) * _SMALLEST**2
        size = together(square.clamp(min=smallest), shared, "mean").sqrt()
        best = torch.ones_like(size)
        least = sum(output_error(layer, moments, best) for layer in layers)
        for step in range(1, self.steps):
            scales = centred(size ** (step / self.steps), shared)
            error = sum(output_error(layer, moments, scales) for layer in layers)
            if error < least:
                best, least = scales, error
        return best


def output_error(layer: Layer, moments: Tensor, scales: Tensor) -> float:
    """The mean square of what rounding changes in the outputs of a layer, over all of them.

    Args:
        layer: a linear one.
        moments: of its input, ``E[x x^T]``, float ``[in, in]``.
        scales: by which its columns are multiplied before they are rounded.
    """
    weight = layer.weight.to(torch.float32)
    scaled = weight * scales
    rows, axis = blocks(scaled, layer.scheme)
    assert axis == 0
    plain = unchecked_qparams(rows.amin(1), rows.amax(1), layer.scheme)
    shape = (len(weight), -1) if layer.scheme.group_size is not None else (len(weight),)
    scale, zero_point = plain.scale.reshape(shape), plain.zero_point.reshape(shape)
    error = fake_quantize(scaled, QParams(scale, zero_point, layer.scheme)) / scales - weight
    return float(((error @ moments) * error).sum())


def centred(scales: Tensor, shared: Tensor) -> Tensor:
    """Scales about one, as the authors' code has them: the largest is over one what the least is
    below; those that are not to change are one.
    """
    own = shared >= 0
    if not bool(own.any()):
        return torch.ones_like(scales)
    middle = (scales[own].max() * scales[own].min()).sqrt()
    return torch.where(own, scales / middle, 1.0)
