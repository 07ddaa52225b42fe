"""One network of the zoo: how to build it, and how to call it with any batch size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Positional arguments, or keyword arguments.
Call = tuple[Any, ...] | dict[str, Any]
SEED = 0
_SETTLING_BATCHES = 2


@dataclass(frozen=True)
class Entry:
    """A network with random weights that are always the same.

    Attributes:
        name: unique in the zoo.
        family: where it comes from; also the package that must be installed.
        make: the network as its library initialises it.
        example: a call with this many samples, random ones.
        another: the same at another length or image size, where the network takes any.
    """

    name: str
    family: str
    make: Callable[[], nn.Module]
    example: Callable[[int], Call]
    another: Callable[[int], Call] | None = None

    def build(self) -> nn.Module:
        """The network in evaluation mode, its signals as alive as after training."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model = self.make().eval()
            _wake(model)
            _settle(model, [self.example(4) for _ in range(_SETTLING_BATCHES)])
        return model


def arguments(call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's positional and keyword arguments."""
    return ((), call) if isinstance(call, dict) else (call, {})


def _wake(model: nn.Module) -> None:
    """Values for what starts at zero, or nearly so, and grows in training.

    Heads and the scales of residual branches do: what lies before them would not reach the result.
    """
    for name, parameter in model.named_parameters():
        values = parameter.data
        if not name.endswith("bias") and float(values.abs().max()) < 1e-3:
            is_matrix = sum(size > 1 for size in values.shape) > 1
            values.normal_(std=0.05) if is_matrix else values.uniform_(0.2, 0.6)


def _settle(model: nn.Module, calls: list[Call]) -> None:
    """Batch norms with the statistics of random inputs; without, signals grow or fade."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = None  # the plain average over all batches
    with torch.no_grad():
        for call in calls if norms else ():
            args, kwargs = arguments(call)
            model(*args, **kwargs)
    model.eval()


def images(size: int, channels: int = 3) -> Callable[[int], Call]:
    """One positional argument: normal random images."""
    return lambda batch: (torch.randn(batch, channels, size, size),)


def tokens(batch: int, length: int, vocabulary: int) -> Tensor:
    return torch.randint(3, vocabulary, (batch, length))


def padding_mask(batch: int, length: int) -> Tensor:
    """1 at tokens, 0 at the padding behind them; each sample is shorter than the one before."""
    ends = length - torch.arange(batch).remainder(length // 2)
    return (torch.arange(length) < ends[:, None]).long()
