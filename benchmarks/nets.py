"""The networks that the benchmarks measure: torchvision's, and small ones for 32x32 digits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

SEED = 0
CLASSES = 10


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, arXiv:1512.03385, for CIFAR)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.shortcut(x))


class SmallResNet(nn.Module):
    """float32 ``[N, 1, 32, 32]`` -> class scores ``[N, 10]``."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), depth: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, widths[0], 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        blocks, before = [], widths[0]
        for stage, width in enumerate(widths):
            for index in range(depth):
                blocks.append(Block(before, width, 2 if stage and not index else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        scores: Tensor = self.fc(self.pool(self.blocks(x)).flatten(1))
        return scores


class Attention(nn.Module):
    """Self-attention out of two linear layers and torch's scaled dot product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


class Layer(nn.Module):
    """Attention and two linear layers, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class SmallViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929), its tokens averaged.

    float32 ``[N, 1, 32, 32]`` -> class scores ``[N, 10]``.
    """

    def __init__(self, width: int = 96, heads: int = 4, depth: int = 4, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (32 // patch) ** 2, width))
        self.layers = nn.Sequential(*(Layer(width, heads, 2 * width) for _ in range(depth)))
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        scores: Tensor = self.fc(self.norm(self.layers(x)).mean(1))
        return scores


class SmallGRU(nn.Module):
    """Reads an image row by row: float32 ``[N, 1, 32, 32]`` -> class scores ``[N, 10]``."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.rows = nn.Linear(32, width)
        self.gru = nn.GRU(width, width, 2, batch_first=True)
        self.hidden, self.fc = nn.Linear(width, width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(F.relu(self.rows(x.squeeze(1))))
        scores: Tensor = self.fc(F.relu(self.hidden(states.mean(1))))
        return scores


class SmallLSTM(nn.Module):
    """As `SmallGRU`, with an LSTM: float32 ``[N, 1, 32, 32]`` -> class scores ``[N, 10]``."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.rows = nn.Linear(32, width)
        self.lstm = nn.LSTM(width, width, 2, batch_first=True)
        self.hidden, self.fc = nn.Linear(width, width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(F.relu(self.rows(x.squeeze(1))))
        scores: Tensor = self.fc(F.relu(self.hidden(states.mean(1))))
        return scores


def _for_gray_images(net: nn.Module) -> nn.Module:
    """A torchvision network whose first convolution takes one channel."""
    stem = net.get_submodule("features.0")
    first = stem.get_submodule("0")
    assert isinstance(stem, nn.Sequential)
    assert isinstance(first, nn.Conv2d)
    stem[0] = nn.Conv2d(1, first.out_channels, 3, stride=2, padding=1, bias=False)
    return net


def mobilenet_v2_for_digits() -> nn.Module:
    return _for_gray_images(models.mobilenet_v2(width_mult=0.5, num_classes=CLASSES))


def mobilenet_v2_small() -> nn.Module:
    """Width 0.35, as the examples train it with rounding."""
    return _for_gray_images(models.mobilenet_v2(width_mult=0.35, num_classes=CLASSES))


def mobilenet_v3_for_digits() -> nn.Module:
    return _for_gray_images(models.mobilenet_v3_small(width_mult=0.75, num_classes=CLASSES))


# name -> a fresh network for 32x32 digits
FOR_DIGITS: dict[str, Callable[[], nn.Module]] = {
    "small ResNet": SmallResNet,
    "MobileNetV2 x0.5": mobilenet_v2_for_digits,
    "MobileNetV3-small x0.75": mobilenet_v3_for_digits,
}

# name -> torchvision's network with random weights
FOR_IMAGES: dict[str, Callable[[], nn.Module]] = {
    "resnet18": models.resnet18,
    "resnet50": models.resnet50,
    "mobilenet_v2": models.mobilenet_v2,
    "mobilenet_v3_large": models.mobilenet_v3_large,
    "efficientnet_b0": models.efficientnet_b0,
}


def photos(count: int, size: int = 224, seed: int = SEED) -> Tensor:
    """Random images that are smooth on a large scale, as photos are: ``[count, 3, size, size]``."""
    chance = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 12, 12, generator=chance)
    fine = torch.randn(count, 3, size, size, generator=chance)
    smooth = F.interpolate(coarse, size=(size, size), mode="bicubic")
    return smooth + 0.2 * fine


def seeded(make: Callable[[], nn.Module], seed: int = SEED) -> nn.Module:
    """A network whose random weights are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def net_for_images(name: str, size: int = 224) -> nn.Module:
    """A torchvision network in evaluation mode: random weights, `with_statistics`."""
    images = [photos(8, size, seed=100 + index) for index in range(3)]
    return with_statistics(seeded(FOR_IMAGES[name]), *images)


def with_statistics(net: nn.Module, *batches: Tensor) -> nn.Module:
    """A network in evaluation mode that has batch statistics of its own.

    Without them the activations of an untrained network grow or fade from layer to layer.
    """
    for module in net.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain average over all batches
        if type(module).__name__ in ("Dropout", "StochasticDepth"):
            module.eval()
    with torch.no_grad():
        for batch in batches:
            net(batch)
    return net.eval()
