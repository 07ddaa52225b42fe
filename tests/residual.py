"""Small networks with a shortcut."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class ResidualNet(nn.Module):
    """Two convolutions, the second with a shortcut, and a linear layer to five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv(x))
        x = functional.relu(x + self.conv2(x))
        result: Tensor = self.fc(x.mean((2, 3)))
        return result


class WideResidualNet(nn.Module):
    """The same with channels enough for kernels, and ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.classes = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        result: Tensor = self.classes((self.b(h) + h).relu().mean((2, 3)))
        return result
