"""A small network on digits, and what the articles do with one: train, measure."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from octavo.compat import quantization


class Net(nn.Module):
    """The article's network, narrower, on images of 14x14."""

    def __init__(self, width: int = 8, hidden: int = 128) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.relu2 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(2, 2)
        self.fc1 = nn.Linear(3 * 3 * 2 * width, hidden)
        self.relu3 = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu1(self.bn1(self.conv1(x))))
        x = self.maxpool(self.relu2(self.bn2(self.conv2(x))))
        x = self.relu3(self.fc1(x.reshape(x.shape[0], -1)))
        scores: Tensor = self.fc2(x)
        return scores


class Wrapped(nn.Module):
    """The article's wrapper: stubs around the model."""

    qconfig: quantization.QConfig

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model_fp32 = model
        self.quant = quantization.QuantStub()
        self.dequant = quantization.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dequant(self.model_fp32(self.quant(x)))
        return y


FUSED = [["conv1", "bn1", "relu1"], ["conv2", "bn2", "relu2"]]


@dataclass(frozen=True)
class Trained:
    """A float network in evaluation mode, and batches of (images, labels)."""

    float_model: Net
    train: DataLoader[tuple[Tensor, ...]]
    test: DataLoader[tuple[Tensor, ...]]

    @property
    def model(self) -> Net:
        """A copy of the network."""
        return copy.deepcopy(self.float_model)

    @property
    def images(self) -> Tensor:
        """One batch of images."""
        images: Tensor = next(iter(self.test))[0]
        return images


def smaller(data: TensorDataset) -> TensorDataset:
    """Images of half the size."""
    images, labels = data.tensors
    return TensorDataset(nn.functional.avg_pool2d(images, 2), labels)


def train(
    model: nn.Module, batches: DataLoader[tuple[Tensor, ...]], epochs: int, lr: float
) -> None:
    """The articles' loop."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()


def percent_right(model: nn.Module, batches: DataLoader[tuple[Tensor, ...]]) -> float:
    """Top-1 in percent."""
    model.eval()
    with torch.no_grad():
        right = [(model(images).argmax(1) == labels).float() for images, labels in batches]
    return torch.cat(right).mean().item() * 100


def decibels(exact: Tensor, found: Tensor) -> float:
    """Signal to noise."""
    return (20 * torch.log10(exact.norm() / (exact - found).norm())).item()
