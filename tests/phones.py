"""Small networks for the runtimes of phones, quantized for ExecuTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import octavo

IMAGES = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(6, 64, generator=torch.Generator().manual_seed(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.two(torch.relu(self.one(x))))


def image_net() -> nn.Module:
    """Convolutions, a residual block, functions, both kinds of pooling, a head."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(), nn.MaxPool2d(2), Block()),
        *(nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.Hardswish(), nn.Conv2d(8, 16, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    ).eval()


def row_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 64), nn.Linear(64, 8)).eval()


def for_phones(net: nn.Module, x: Tensor, **how: object) -> octavo.QuantizedModel:
    given = {"target": "executorch", "progress": False, "calibration": [x], **how}
    return octavo.quantize(net, x, **given)  # type: ignore[arg-type]
