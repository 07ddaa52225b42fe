"""Modules that a model is written with, so that eager mode knows what is to be quantized."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import PlanError


class _Stub(nn.Module):
    def __init__(self, qconfig: Any = None) -> None:
        super().__init__()
        if qconfig is not None:
            self.qconfig = qconfig

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself; where the model is captured a copy, so that the graph shows the place."""
        return x.clone() if torch.compiler.is_exporting() else x


class QuantStub(_Stub):
    """From here on a tensor is quantized."""


class DeQuantStub(_Stub):
    """From here on it is float again."""


class QuantWrapper(nn.Module):
    """A module between the stubs.

    Example:
        >>> QuantWrapper(nn.Linear(2, 2))(torch.ones(1, 2)).shape
        torch.Size([1, 2])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        qconfig = getattr(module, "qconfig", None)
        self.quant, self.dequant = QuantStub(qconfig), DeQuantStub(qconfig)
        self.module = module
        if qconfig is not None:
            self.qconfig = qconfig
        self.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.dequant(self.module(self.quant(x)))
        return result


class FloatFunctional(nn.Module):
    """Operations as a module, so that each has a place for its scale. Octavo finds ``x + y`` in a
    graph as well.
    """

    def forward(self, x: Any) -> Any:
        """Not for calling.

        Raises:
            PlanError: always.
        """
        raise PlanError("FloatFunctional is not called: use its methods, such as add(x, y)")

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.add(x, y)

    def add_scalar(self, x: Tensor, y: float) -> Tensor:
        return torch.add(x, y)

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.mul(x, y)

    def mul_scalar(self, x: Tensor, y: float) -> Tensor:
        return torch.mul(x, y)

    def cat(self, x: list[Tensor], dim: int = 0) -> Tensor:
        return torch.cat(x, dim=dim)

    def add_relu(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(torch.add(x, y))

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.matmul(x, y)


class QFunctional(FloatFunctional):
    """What ``convert`` leaves of a `FloatFunctional`: the graph does its work."""
