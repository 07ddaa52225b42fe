"""A layer and the batch norm behind it, rounded as they will be deployed: as one layer.

Deployed, the norm is folded: ``w' = w * factor``, ``factor = gamma / sqrt(variance + eps)``, and
``w'`` is what is rounded. Training with the statistics of the batch rounds the same ``w'``, by the
running statistics, and divides the factor out of the weight again before the batch norm proper
(Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2; there the output is divided, which is
larger).

Tested in tests/qat/test_norm_modules.py and tests/qat/test_prepare.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.errors import TrainingError
from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.graph.passes.fold_batch_norm import Folding
from octavo.qat.layer_rounding import LayerRounding
from octavo.qat.norm_modules import MOMENTUM, share_of_batch
from octavo.qat.processes import take_mean_of_all

# A channel that is switched off (gamma 0) still has a weight to round.
_SMALLEST_FACTOR = 1e-12


@dataclass
class Mode:
    """What a model that is being trained does at present; its operators share one.

    Attributes:
        training: dropout drops.
        norms_frozen: batch norms use the running statistics in training too, and leave them.
    """

    training: bool = True
    norms_frozen: bool = False

    def batch_statistics(self, norm: nn.Module | None) -> bool:
        """Whether a batch norm normalizes with the statistics of the batch.

        Args:
            norm: the module that holds its tensors, which may be in evaluation mode by itself.
        """
        return self.training and not self.norms_frozen and (norm is None or norm.training)


@dataclass(frozen=True)
class BatchNorm:
    """A batch norm with the statistics of the batch. The running ones, if there are any, go on, and
    are the mean of those of all processes that train together.

    Attributes:
        name: of its node.
        eps, momentum: its numbers.
        module: that holds its tensors, if there is one.
    """

    name: str
    eps: float
    momentum: float
    module: nn.Module | None

    @classmethod
    def of(cls, norm: Node, module: nn.Module | None) -> BatchNorm:
        given = arguments(norm)
        return cls(norm.name, given["eps"], given["momentum"] or MOMENTUM, module)

    def __call__(
        self,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        mean: Tensor,
        variance: Tensor,
    ) -> Tensor:
        """Raises:
        TrainingError: a channel has one value in the batch.
        """
        if x.numel() == x.shape[1]:
            raise TrainingError(
                f"the batch norm {self.name!r} cannot train on a batch of shape {list(x.shape)}: a "
                "channel has one value; give larger batches (a loader's drop_last=True), or freeze "
                "the batch norms with freeze_batch_norms()"
            )
        share = self.momentum if self.module is None else share_of_batch(self.module)
        y = functional.batch_norm(x, mean, variance, gamma, beta, True, share, self.eps)
        take_mean_of_all(mean, variance)
        return y


@dataclass(frozen=True)
class LayerWithNorm:
    """Called with the layer's input and the tensors of both; gives the norm's output.

    Attributes:
        operator: the layer's, of its input, weight and bias.
        norm: the batch norm.
        folding: of the one into the other.
        rounding: of the folded weight and bias.
        mode: of the model.
    """

    operator: Callable[..., Tensor]
    norm: BatchNorm
    folding: Folding
    rounding: LayerRounding
    mode: Mode

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, *norm: Any) -> Tensor:
        if self.mode.batch_statistics(self.norm.module):
            gamma, _, _, variance = norm
            factor = torch.rsqrt(variance + self.norm.eps)
            factor = factor if gamma is None else factor * gamma
            y = self.operator(x, self._rounded(weight, factor.detach()), bias)
            return self.norm(y, *norm)
        folded = self.folding.folded(weight, bias, *norm)
        return self.operator(x, *self.rounding(*folded))

    def _rounded(self, weight: Tensor, factor: Tensor) -> Tensor:
        """The weight that, once folded, is the rounded folded weight."""
        fake_quantize = self.rounding.weight
        if fake_quantize is None:
            return weight
        if fake_quantize.scales_with:
            return fake_quantize(weight)  # type: ignore[no-any-return]
        factor = torch.where(factor.abs() < _SMALLEST_FACTOR, _SMALLEST_FACTOR, factor)
        rounded = fake_quantize(self.folding.scaled(weight, factor))
        return self.folding.scaled(rounded, 1 / factor)
