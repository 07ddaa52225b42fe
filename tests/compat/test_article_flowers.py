"""The article that quantizes a ResNet-18 for Flowers102: FX mode, saved, loaded, compared.

torchvision's own `Flowers102` reads a small set in its file format: four colours of flowers.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from small_flowers import accept_flowers, write_flowers
from torch import nn
from torch.utils.data import DataLoader

from compat.networks import decibels, percent_right

torchvision = pytest.importorskip("torchvision")

from octavo.compat.quantization import QConfigMapping, get_default_qconfig  # noqa: E402
from octavo.compat.quantization.quantize_fx import convert_fx, prepare_fx  # noqa: E402

SIDE = 64
EXAMPLE = (1, 3, SIDE, SIDE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_flowers(folder)
    return folder


@pytest.fixture(scope="module")
def loaders(root: Path) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Training and test images, as the article loads them, smaller."""
    transforms = torchvision.transforms
    transform = transforms.Compose(
        [
            transforms.Resize(72),
            transforms.CenterCrop(SIDE),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.465, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    data = torchvision.datasets.Flowers102
    with pytest.MonkeyPatch.context() as patch:
        accept_flowers(root, patch)
        parts = [
            data(root=str(root), split=split, download=False, transform=transform)
            for split in ("train", "test")
        ]
    return DataLoader(parts[0], 10, shuffle=True), DataLoader(parts[1], 10)


@pytest.fixture(scope="module")
def finetuned(loaders: tuple[DataLoader[Any], DataLoader[Any]]) -> nn.Module:
    """A ResNet-18 of which the last layer was trained."""
    torch.manual_seed(0)
    model: Any = torchvision.models.resnet18(weights=None)
    model.fc = nn.Linear(model.fc.in_features, 102)
    model.train()
    with torch.no_grad():
        for images, _ in loaders[0]:  # running statistics
            model(images)
    model.eval()
    body = nn.Sequential(*list(model.children())[:-1], nn.Flatten())
    with torch.no_grad():
        seen = [(body(images), labels) for images, labels in loaders[0]]
    features = torch.cat([f for f, _ in seen])
    labels = torch.cat([one for _, one in seen])
    optimizer = torch.optim.Adam(model.fc.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.fc(features), labels).backward()
        optimizer.step()
    trained: nn.Module = model
    return trained


def load_quantized_model(model_to_quantize: nn.Module, weights_path: Path) -> nn.Module:
    """The article's function: prepare and convert without calibration, then load."""
    model_to_quantize.eval()
    mapping = QConfigMapping().set_global(get_default_qconfig("x86"))
    model_prep = prepare_fx(model_to_quantize, mapping, torch.randn(EXAMPLE))
    quantized_model = convert_fx(model_prep)
    quantized_model.load_state_dict(torch.load(weights_path))
    return quantized_model


def test_quantize_save_load_and_compare(
    finetuned: nn.Module, loaders: tuple[DataLoader[Any], DataLoader[Any]], tmp_path: Path
) -> None:
    model_path, quantized_path = tmp_path / "flowers.pth", tmp_path / "quantized_flowers.pth"
    torch.save(finetuned.state_dict(), model_path)
    model_prep = prepare_fx(
        model=copy.deepcopy(finetuned),
        qconfig_mapping=QConfigMapping().set_global(get_default_qconfig("x86")),
        example_inputs=torch.randn(EXAMPLE),
    )
    with torch.no_grad():
        for samples, _ in loaders[0]:
            model_prep(samples)
    quantized_model = convert_fx(model_prep)
    torch.save(quantized_model.state_dict(), quantized_path)

    assert str(finetuned.conv1).startswith("Conv2d(3, 64, kernel_size=(7, 7)")
    printed = str(quantized_model.conv1)
    assert printed.startswith("QuantizedConvReLU2d(3, 64, kernel_size=(7, 7)")
    assert "scale=" in printed
    assert "zero_point=0" in printed

    model: Any = torchvision.models.resnet18(weights=None)
    model.fc = nn.Linear(model.fc.in_features, 102)
    loaded = load_quantized_model(model, quantized_path)
    images, _ = next(iter(loaders[1]))
    assert torch.equal(loaded(images), quantized_model(images))
    assert decibels(finetuned(images), loaded(images)) > 20
    before, after = (percent_right(m, loaders[1]) for m in (finetuned, loaded))
    assert before > 80
    assert after >= before - 100 / 16  # one image of sixteen
    assert quantized_path.stat().st_size < 0.27 * model_path.stat().st_size
