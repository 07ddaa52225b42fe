"""A ResNet-18 learns Oxford's 102 flowers and is quantized: data, training, eight bits, one file.

    mkdir data && python -m examples.flowers --data data

torchvision downloads the flowers (345 MB) into the folder, and the weights that ResNet-18 has
learned from ImageNet (47 MB), each with a bar; where there is no network, it says which files to
put where. The last layer is trained on the 1,020 training images, and all is measured on the 6,149
test images. Writes ``flowers.pth`` and ``flowers.octavo`` into ``--out``. It needs ``pip install
torchvision scipy``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models, transforms

import octavo
from octavo.cli.demo.downloads import downloaded
from octavo.errors import InputError
from octavo.progress import track

SIZE, CLASSES, BATCH = 224, 102, 32
CALIBRATION_BATCHES = 4
STEPS, RATE = 200, 0.01  # of the last layer's training


def flowers(folder: Path, split: str) -> DataLoader[Any]:
    """Batches of images and labels: those for ``"train"``, or those for ``"test"``."""
    transform = transforms.Compose(
        [
            transforms.Resize(SIZE * 8 // 7),
            transforms.CenterCrop(SIZE),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    files = (
        "102flowers.tgz, imagelabels.mat and setid.mat of "
        f"https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ into {folder / 'flowers-102'}"
    )
    data = downloaded("Flowers102", folder, f"put {files}", split=split, transform=transform)
    chance = torch.Generator().manual_seed(0)  # of the order: a class comes behind the other
    return DataLoader(data, BATCH, shuffle=split == "train", generator=chance)


def resnet(weights: Path | None) -> models.ResNet:
    """A ResNet-18 that knows ImageNet, from a file or from where torchvision finds it."""
    if weights is not None:
        net = models.resnet18()
        net.load_state_dict(torch.load(weights, weights_only=True))
        return net
    pretrained = models.ResNet18_Weights.IMAGENET1K_V1
    try:
        return models.resnet18(weights=pretrained)
    except OSError as error:
        raise InputError(
            f"the weights of ResNet-18 cannot be downloaded ({error}): get {pretrained.url}, and "
            "name the file with --weights"
        ) from error


def finetuned(net: models.ResNet, train: DataLoader[Any]) -> nn.Module:
    """With a last layer for flowers, which alone is trained: on what the others make of images."""
    net.eval()
    net.fc = nn.Identity()
    with torch.no_grad():
        seen = [(net(images), labels) for images, labels in track(train, "looking at images")]
    features, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    torch.manual_seed(0)
    net.fc = nn.Linear(features.shape[1], CLASSES)
    optimizer = torch.optim.Adam(net.fc.parameters(), RATE, weight_decay=1e-4)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net.fc(features), labels).backward()
        optimizer.step()
    return net


def run(data: Path, weights: Path | None, out: Path) -> octavo.Comparison:
    """All of it; the float model and the one of eight bits side by side on the test images."""
    train, test = flowers(data, "train"), flowers(data, "test")
    net = finetuned(resnet(weights), train)
    q = octavo.quantize(net, calibration=list(islice(train, CALIBRATION_BATCHES)))
    out.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), out / "flowers.pth")
    q.save(out / "flowers.octavo")
    return octavo.compare(net, q, test)


def main(words: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--data", type=Path, required=True, help="folder for the flowers' files")
    made.add_argument("--weights", type=Path, help="file of ResNet-18's weights [a download]")
    made.add_argument("--out", type=Path, default=Path("build/flowers"), help="for the results")
    options = made.parse_args(words)
    try:
        print(run(options.data, options.weights, options.out))
    except octavo.OctavoError as error:
        raise SystemExit(f"flowers: {error}") from None
    for name in ("flowers.pth", "flowers.octavo"):
        print(f"{options.out / name}: {(options.out / name).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
