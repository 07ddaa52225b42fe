"""Activation functions as ONNX: what torch gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from decibel import sqnr_db
from torch import nn

import octavo

FUNCTIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardtanh": F.hardtanh,
    "hardtanh to bounds": lambda x: F.hardtanh(x, -2, 0.5),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky relu": F.leaky_relu,
    "leaky relu with a slope": lambda x: F.leaky_relu(x, 0.3),
    "elu": F.elu,
    "elu alpha": lambda x: F.elu(x, 0.5),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.7),
    "softplus": F.softplus,
    "softplus beta": lambda x: F.softplus(x, beta=3),
    "softshrink": lambda x: F.softshrink(x, 0.3),
    "hardshrink": lambda x: F.hardshrink(x, 0.3),
    "threshold": lambda x: F.threshold(x, 0.2, -5),
    "log sigmoid": F.logsigmoid,
    "glu": F.glu,
    "glu of an axis": lambda x: F.glu(x, 1),
    "softmax": lambda x: x.softmax(-1),
    "softmax of an axis": lambda x: x.softmax(1),
    "softmax in doubles": lambda x: F.softmax(x, -1, dtype=torch.float64),
    "log softmax": lambda x: x.log_softmax(-1),
}


def test_functions(agrees):
    x = 3 * torch.randn(2, 4, 6)
    agrees(lambda x: {name: compute(x) for name, compute in FUNCTIONS.items()}, x)


@pytest.mark.parametrize(("slopes", "rank"), [(1, 4), (4, 2), (4, 3), (4, 4)])
def test_prelu_has_slopes_for_axis_1(slopes, rank, agrees):
    model = nn.PReLU(slopes)
    model.weight.data.uniform_(0.1, 0.9)
    agrees(model, torch.randn(2, 4, 5, 3)[(...,) + (0,) * (4 - rank)])


def test_an_elu_with_scales_is_refused(refusal):
    message = refusal(lambda x: torch.ops.aten.elu(x, 1.0, 2.0, 1.0), torch.randn(2, 3))
    assert "aten.elu.default" in message
    assert "multiply" in message


@pytest.mark.parametrize(
    "function", [nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid(), nn.Tanh(), nn.ELU()]
)
def test_a_convolution_in_front_of_a_function_runs_on_integers_in_onnxruntime(
    function: nn.Module,
) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), function, nn.Conv2d(8, 4, 3), nn.Flatten())
    x = torch.randn(2, 3, 9, 9)
    q = octavo.quantize(net, calibration=[x], target="onnxruntime", progress=False)
    run = q.lower("onnxruntime")
    assert run.lowered.kernels["0"] == "onnxruntime QLinearConv"
    assert sqnr_db(q.lower("reference")(x), run(x)) > 45
