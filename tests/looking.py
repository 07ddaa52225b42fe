"""A network that Python looks into as it runs, so that only its parts are graphs."""

from __future__ import annotations

from torch import Tensor, nn


class Looking(nn.Module):
    """``[N, 6]`` -> ``[N, 4]``, unless the body's values are beyond all bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        result: Tensor = self.head(y) if y.sum().abs() < 1e9 else y
        return result
