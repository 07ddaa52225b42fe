"""What is no float model, or no quantized one, is refused with the way to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.errors import InputError
from octavo.model.kinds import require_float, require_quantized

FLOAT = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
X = torch.randn(2, 4)


def quantized() -> nn.Module:
    return octavo.quantize(FLOAT, X, mode="dynamic", progress=False)


def prepared() -> nn.Module:
    return octavo.prepare_qat(FLOAT, X)


def test_what_belongs_is_taken() -> None:
    require_float(FLOAT, "compare")
    require_quantized(quantized(), "verify")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (quantized, "takes the float model first, .* give the float model that was quantized"),
        (prepared, "give the model that octavo.prepare_qat was called with"),
        (lambda: torch.jit.trace(FLOAT, X), "TorchScript cannot be captured"),
        (lambda: nn.Linear, r"give a model, Linear\(...\), not its class"),
        (FLOAT.state_dict, "if it is a state dict, build the network and load_state_dict it"),
    ],
)
def test_no_float_model(made: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=f"octavo.compare .*{words}"):
        require_float(made(), "compare")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            lambda: octavo.quantize(FLOAT, scope="modules"),
            r"its layers are modules of octavo\.nn, and no graph.*octavo\.sensitivity",
        ),
        (lambda: FLOAT, "octavo.quantize makes one from a float model"),
        (prepared, "octavo.convert makes one from a model that was trained with rounding"),
        (lambda: "m.octavo", r"load the file first, octavo.load\('m.octavo'\)"),
        (lambda: None, "octavo.quantize, octavo.convert and octavo.load return one"),
    ],
)
def test_no_quantized_model(made: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=f"octavo.verify takes a quantized model, .*{words}"):
        require_quantized(made(), "verify")
