"""ONNX Runtime and OpenVINO compute what is float in float32, and round nothing on their own."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from capturing import captured_as
from decibel import sqnr_db
from torch import nn

import octavo

RUNTIMES = ("onnxruntime", "openvino")
# Float32 sums in another order; one rounding to eight bits gives 35 to 45, bfloat16 45 to 55.
EXACT_DB = 110.0
TWO_DIGITS_DB = 80.0  # which ONNX Runtime's kernel for integer weights gets of its input
# As near as two float32 results are whose quotient by a scale lies between two integers once.
ROUNDED_ALIKE_DB = 60.0


class Angles(nn.Module):
    """What a diffusion model does with a time step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 8)

    def forward(self, t):
        e = t[:, None] * torch.exp(-torch.arange(16) / 1.7)
        return self.layer(torch.cat([e.sin(), e.cos()], -1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.LSTM(16, 16, batch_first=True), nn.GRU(16, 16, batch_first=True)
        self.c = nn.Linear(16, 8)

    def forward(self, x):
        return self.c(self.b(self.a(x)[0])[0])


MODELS = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 8)),
        lambda: torch.randn(3, 64),
    ),
    "linear over tokens": (
        lambda: nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 8)),
        lambda: torch.randn(3, 5, 64),
    ),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 32)),
        lambda: torch.randn(2, 3, 8, 8),
    ),
    "recurrent": (Recurrent, lambda: torch.randn(2, 5, 16)),
    "angles": (Angles, lambda: torch.randint(0, 1000, (16,)).float()),
}
WEIGHTS = {
    "8 bits": octavo.weight_only_qconfig(),
    "8 bits, affine": octavo.weight_only_qconfig(8, symmetric=False),
    "4 bits": octavo.weight_only_qconfig(4),
    "4 bits in groups": octavo.weight_only_qconfig(4, group_size=16, symmetric=False),
}


@cache
def captured(name):
    """A model and its input, for all ways to quantize it."""
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    x, model = inputs(), make().eval()
    return x, model, octavo.capture(model, x)


@cache
def quantized(name, weights="", target=None):
    """For all runtimes: by its weights alone, or dynamic."""
    x, model, graph = captured(name)
    how = {"qconfig": WEIGHTS[weights]} if weights else {"mode": "dynamic", "target": target}
    with captured_as(graph):
        return x, octavo.quantize(model, x, **how, progress=False)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_integer_weights_leave_activations_as_they_are(runtime, name, weights):
    x, q = quantized(name, weights)
    least = TWO_DIGITS_DB if runtime == "onnxruntime" else EXACT_DB
    assert sqnr_db(q.lower("reference")(x), q.lower(runtime)(x)) > least


@pytest.mark.parametrize("name", ["linear", "linear over tokens", "angles"])
@pytest.mark.parametrize("target", ["x86", "arm", "edge"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_dynamic_layers_round_as_the_oracle_does(runtime, target, name):
    x, q = quantized(name, target=target)
    assert sqnr_db(q.lower("reference")(x), q.lower(runtime)(x)) > ROUNDED_ALIKE_DB


def test_one_scale_for_a_recurrent_weight():
    """Arm's; OpenVINO wants its recurrent layers' weights as floats."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    q = octavo.quantize(Recurrent(), x, mode="weight_only", target="arm", progress=False)
    assert sqnr_db(q.lower("reference")(x), q.lower("openvino")(x)) > EXACT_DB
