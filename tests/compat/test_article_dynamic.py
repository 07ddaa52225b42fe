"""The article for beginners: a ResNet-18, its linear layer dynamic, both outputs printed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import octavo.compat.quantization
from compat.networks import decibels

torchvision = pytest.importorskip("torchvision")


def test_dynamic_resnet() -> None:
    model: Any = torchvision.models.resnet18(weights=None)
    model.eval()
    dummy_input = torch.randn(1, 3, 64, 64)
    quantized_model: Any = octavo.compat.quantization.quantize_dynamic(
        model, {torch.nn.Linear}, dtype=torch.qint8
    )
    with torch.no_grad():
        original_output = model(dummy_input)
        quantized_output = quantized_model(dummy_input)
    assert quantized_output.shape == (1, 1000)
    assert decibels(original_output, quantized_output) > 30
    assert quantized_model.fc.weight().element_size() == 1
    assert quantized_model.conv1.weight.dtype == torch.float32
