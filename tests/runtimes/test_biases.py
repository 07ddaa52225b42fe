"""Biases beside weights of few bits and of transposed convolutions: one meaning everywhere.

ONNX Runtime makes int32 of float biases, in steps of input scale times weight scale, even where it
then runs the layer in float.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from capturing import captured_as
from decibel import sqnr_db
from torch import nn

import octavo

NETS = {
    "convolutions": lambda: (nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 6, 1)),
    "transposed": lambda: (nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), nn.Conv2d(6, 6, 1)),
    "linear": lambda: (nn.Flatten(), nn.Linear(8 * 36, 16), nn.ReLU(), nn.Linear(16, 6)),
}


@cache
def captured(name: str) -> tuple:
    """A net, its input and its graph, for all bits."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *NETS[name]()).eval()
    x = torch.rand(4, 3, 8, 8)
    return net, x, octavo.capture(net, x)


@cache
def quantized(name: str, bits: int) -> tuple:
    """For all runtimes."""
    net, x, graph = captured(name)
    target = octavo.host_target()
    qconfig = octavo.qat_qconfig(target, weight_bits=bits)
    with captured_as(graph):
        q = octavo.quantize(net, calibration=[x], qconfig=qconfig, target=target, progress=False)
    return q, x


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", NETS)
def test_biases_are_the_oracles(name: str, bits: int, runtime: str) -> None:
    q, x = quantized(name, bits)
    # One integer of the 1,536 in the middle that is a step off leaves 60 dB.
    assert sqnr_db(q.lower("reference")(x), q.lower(runtime)(x)) > 58
