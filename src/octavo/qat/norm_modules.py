"""Batch norms of a model in training as modules of torch's own kind.

They hold the statistics and are never called. What other code does to batch norms that it finds
among a model's modules is thereby done: one that is set to evaluation is frozen, one whose momentum
is taken away averages over all batches (`torch.optim.swa_utils.update_bn`).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.graph.passes.fold_batch_norm import NORM_TENSORS, tensors_of

MOMENTUM = 0.1
_KINDS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def path_of(norm: Node, held: dict[str, str]) -> str | None:
    """The path of the module whose tensors a batch norm reads; ``None`` where it is not one.

    Args:
        norm: a node of the training graph.
        held: constant of the graph -> name of the tensor in the model.
    """
    read = zip(NORM_TENSORS, tensors_of(norm), strict=True)
    names = {leaf: held[ref.name] for leaf, ref in read if ref is not None}
    paths = {name.rpartition(".")[0] for name in names.values()}
    if any(name.rpartition(".")[2] != leaf for leaf, name in names.items()) or len(paths) != 1:
        return None
    return paths.pop() or None


def holder(norm: Node, channels: int) -> nn.Module:
    """A batch norm that holds nothing yet but how many batches it has seen."""
    assert norm.meta is not None
    kind: type[_BatchNorm] = _KINDS[len(norm.meta.shape)]
    # A cumulative average (momentum=None) is captured as 0, and counts no batches here.
    given = arguments(norm)
    affine = given["weight"] is not None
    module = kind(channels, given["eps"], given["momentum"] or MOMENTUM, affine)
    if module.affine:
        module._parameters.clear()
    for name in ("running_mean", "running_var"):
        del module._buffers[name]
    return module


def share_of_batch(module: nn.Module) -> float:
    """What part of the way to a batch's statistics the running ones go; counts the batch."""
    assert isinstance(module, _BatchNorm)
    count = module.num_batches_tracked
    if count is not None:
        with torch.no_grad():
            count.add_(1)
    if module.momentum is None and count is not None:
        return 1.0 / float(count)
    return MOMENTUM if module.momentum is None else module.momentum
