"""A layer and the batch norm behind it, rounded as they will be deployed: as one layer.

Deployed, the norm is folded: ``w' = w * factor``, ``factor = gamma / sqrt(variance + eps)``, and
``w'`` is what is rounded. Training with the statistics of the batch rounds the same ``w'``, by the
running statistics, and divides the factor out of the weight again before the batch norm proper
(Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2; there the output is divided, which is
larger).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.errors import TrainingError
from octavo.graph.graph import Node
from octavo.graph.passes.fold_batch_norm import folded_tensors, scaled
from octavo.qat.held_norm import momentum_of
from octavo.qat.layer_rounding import LayerRounding

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
class LayerWithNorm:
    """Called with the layer's input and the tensors of both; gives the norm's output.

    Attributes:
        layer, norm: the two nodes.
        operator: the layer's.
        rounding: of the folded weight and bias.
        mode: of the model.
        module: that holds the norm's tensors, if there is one.
    """

    layer: Node
    norm: Node
    operator: Callable[..., Tensor]
    rounding: LayerRounding
    mode: Mode
    module: nn.Module | None = None

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        mean: Tensor,
        variance: Tensor,
    ) -> Tensor:
        rest = self.layer.args[3:]
        if self.mode.batch_statistics(self.module):
            factor = torch.rsqrt(variance + self.norm.args[7])
            factor = factor if gamma is None else factor * gamma
            y: Tensor = self.operator(x, self._rounded(weight, factor.detach()), bias, *rest)
            return batch_norm(self.norm, self.module, y, gamma, beta, mean, variance)
        tensors = (weight, bias, gamma, beta, mean, variance)
        folded = folded_tensors(self.layer, self.norm, *tensors)
        result: Tensor = self.operator(x, *self.rounding(*folded), *rest)
        return result

    def _rounded(self, weight: Tensor, factor: Tensor) -> Tensor:
        """The weight that, once folded, is the rounded folded weight."""
        fake_quantize = self.rounding.weight
        if fake_quantize is None:
            return weight
        if fake_quantize.scales_with:
            return fake_quantize(weight)  # type: ignore[no-any-return]
        factor = torch.where(factor.abs() < _SMALLEST_FACTOR, _SMALLEST_FACTOR, factor)
        rounded = fake_quantize(scaled(weight, factor, self.layer))
        return scaled(rounded, 1 / factor, self.layer)


def batch_norm(
    norm: Node,
    module: nn.Module | None,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    variance: Tensor,
) -> Tensor:
    """With the statistics of the batch; the running ones are updated.

    Raises:
        TrainingError: a channel has one value in the batch.
    """
    if x.numel() == x.shape[1]:
        raise TrainingError(
            f"the batch norm {norm.name!r} cannot train on a batch of shape {list(x.shape)}: a "
            "channel has one value; give larger batches (a loader's drop_last=True), or freeze "
            "the batch norms with freeze_batch_norms()"
        )
    momentum = momentum_of(norm, module)
    return functional.batch_norm(x, mean, variance, gamma, beta, True, momentum, norm.args[7])
