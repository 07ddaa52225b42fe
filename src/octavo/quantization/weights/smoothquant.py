"""SmoothQuant: large inputs are scaled down before they are rounded, and their weights up
(Xiao et al. 2023, arXiv:2211.10438).

Equation 4 there: ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)``, by which the input's channel
``j`` is divided and the weights' columns are multiplied, in all layers that read the input.

Tested in tests/quantization/weights/test_awq.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from octavo.arguments import SHARE, expect
from octavo.quantization.weights.layers import Layer
from octavo.quantization.weights.moments import Largest
from octavo.quantization.weights.rescaling import Rescaling, together

_SMALLEST = 1e-5  # of a largest input or weight, as the authors' code has it


@dataclass(frozen=True)
class SmoothQuant(Rescaling):
    """Inputs with a few large channels are made even, so that rounding them at each call costs
    less.

    It is for dynamic linear layers of models in modules, behind a norm or a linear layer that can
    take the scales, and needs data.

    Args:
        alpha: how much of the difficulty goes from inputs to weights, 0 to 1.

    Raises:
        InputError: ``alpha`` is no such share.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.LayerNorm(64), torch.nn.Linear(64, 8)).eval()
        >>> data = [torch.randn(256, 64)]
        >>> q = octavo.quantize(
        ...     net,
        ...     calibration=data,
        ...     scope="modules",
        ...     mode="dynamic",
        ...     weights=[octavo.SmoothQuant()],
        ... )
    """

    name: ClassVar[str] = "smoothquant"

    alpha: float = 0.5

    def __post_init__(self) -> None:
        expect(SHARE, alpha=self.alpha)

    def fits(self, layer: Layer) -> bool:
        return layer.runs == "dynamic" and layer.node.short_op == "linear"

    def statistic(self, layer: Layer) -> Largest:
        return Largest()

    def scales(self, layers: Sequence[Layer], seen: Tensor, shared: Tensor) -> Tensor:
        columns = torch.stack([layer.weight.abs().amax(0) for layer in layers]).amax(0)
        inputs, weights = (
            together(values.to(torch.float32).clamp(min=_SMALLEST), shared, "amax")
            for values in (seen, columns)
        )
        scales = inputs**self.alpha / weights ** (1 - self.alpha)
        return torch.where(shared >= 0, scales.clamp(min=_SMALLEST), 1.0)
