"""Evaluation mode for a while, with each module's own mode given back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each module's own mode outside.

    The flags are set one by one, since modules that torch.export made refuse ``eval()``.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def trained_inside(model: nn.Module) -> list[str]:
    """Of a model in evaluation mode, the paths of modules that drop values or take the statistics
    of a batch all the same, as Monte Carlo dropout has it.
    """
    if model.training:
        return []
    return [path for path, part in model.named_modules() if part.training and _differs(part)]


def _differs(module: nn.Module) -> bool:
    """Whether a module computes something else in training mode."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return module.track_running_stats
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
