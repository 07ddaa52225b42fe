"""A function as a module, for networks whose point is one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


class Net(nn.Module):
    """A network of some parts: ``Net(lambda net, x: net.a(x) + net.b(x), a=..., b=...)``."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(self, *tensors)
