"""`verify`: runtimes against the oracle, layer by layer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from calling import Call
from residual import WideResidualNet
from torch import nn

import octavo
from octavo.errors import InputError
from octavo.measuring.parity import LayerParity, Threshold
from octavo.quantization.targets import TARGETS
from octavo.runtimes import RUNTIMES, Runtime, cpu

RUNNING = ["torch", "onnxruntime", "openvino"]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True)
        self.classes = nn.Linear(32, 3)

    def forward(self, x):
        return self.classes(self.layer(x)[0][:, -1])


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 1),
        nn.BatchNorm2d(16),
        nn.Hardswish(),
        nn.Conv2d(16, 16, 3, groups=16, stride=2),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


IMAGES = (2, 3, 16, 16)
MODELS = {
    "residual": (WideResidualNet, IMAGES),
    "depthwise": (depthwise, IMAGES),
    "lstm": (Recurrent, (2, 5, 8)),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True),
        (2, 7, 32),
    ),
}


def quantized(name, mode, target=None):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    x = torch.randn(shape)
    return octavo.quantize(
        make().eval(),
        x,
        calibration=[x] if mode == "static" else None,
        mode=mode,
        target=target or octavo.host_target(),
        progress=False,
    )


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
@pytest.mark.parametrize("name", MODELS)
def test_all_runtimes_agree_with_the_oracle(name, mode):
    found = octavo.verify(quantized(name, mode), runtimes=RUNNING)
    assert [runtime.runtime for runtime in found.runtimes] == RUNNING
    assert found.passed, str(found)
    assert all(runtime.layers for runtime in found.runtimes)
    assert found.samples == 8


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_models_of_every_target_agree(target):
    found = octavo.verify(quantized("residual", "static", target), runtimes=RUNNING)
    assert found.passed, str(found)


def test_biases_are_whole_steps_of_the_sums_on_every_runtime():
    """With float biases ONNX Runtime is a step off in 400 to 1200 of a million values here."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU())
    net.append(nn.Conv2d(32, 4, 1))
    x = torch.randn(8, 3, 24, 24)
    q = octavo.quantize(net, calibration=[x], target=octavo.host_target(), progress=False)
    for runtime in octavo.verify(q, [x], runtimes=RUNNING).runtimes:
        assert len(runtime.layers) == 4
        assert max(layer.unequal for layer in runtime.layers) < 1e-4, runtime.runtime


def test_a_wrong_kernel_is_named_by_its_layer(monkeypatch):
    """A runtime with one wrong weight: only that layer is blamed, not those behind it."""
    from octavo.runtimes import reference

    q = quantized("residual", "static")
    honest = reference.lower

    def wrong(graph, device, options):
        constants = dict(graph.constants)
        if "b.weight" in constants:
            constants["b.weight"] = constants["b.weight"].flip(0)
        return honest(replace(graph, constants=constants), device, options)

    monkeypatch.setitem(RUNTIMES, "wrong", Runtime(wrong))
    found = octavo.verify(q, runtimes=["wrong"])
    (runtime,) = found.runtimes
    assert not found.passed
    assert runtime.first == "relu_1"  # the layer, its addition and its relu are one kernel
    off = [layer.layer for layer in runtime.layers if not layer.within(Threshold())]
    assert off == ["relu_1"]
    assert "disagrees first at 'relu_1'" in str(found)
    assert "<td>disagrees first at &#x27;relu_1&#x27;" in found._repr_html_()
    assert runtime.whole.sqnr_db < runtime.whole.bound_db
    assert "target" not in str(found).splitlines()[-1]
    monkeypatch.setitem(RUNTIMES, "wrong", Runtime(wrong, targets=("edge",)))
    told = "it is for models of target 'edge': quantize with target='edge'"
    assert told in " ".join(str(octavo.verify(q, runtimes=["wrong"])).split())


def test_saturation_is_seen(monkeypatch):
    """OpenVINO on weights that overflow, as if this CPU were trusted not to."""
    if not cpu.saturates():
        pytest.skip("this CPU's kernels do not overflow")
    q = quantized("residual", "static", "openvino")
    monkeypatch.setattr("octavo.runtimes.saturation.cpu.saturates", lambda: False)
    found = octavo.verify(q, runtimes=["openvino"])
    assert found.runtimes[0].first == "relu"
    assert found.runtimes[0].layers[1].steps > 10


def test_a_runtime_that_cannot_run_is_a_row():
    q = octavo.quantize(
        nn.Sequential(nn.Linear(8, 8), Call(lambda y: torch.fft.rfft(y).abs())),
        torch.randn(2, 8),
        progress=False,
    )
    found = octavo.verify(q, runtimes=["openvino"])
    assert not found.passed
    assert "fft_rfft" in found.runtimes[0].error


def test_batches_are_those_of_calibration():
    q = quantized("residual", "static")
    batches = [(torch.randn(3, 3, 16, 16), torch.zeros(3)), (torch.randn(1, 3, 16, 16), None)]
    found = octavo.verify(q, batches, runtimes=["torch"])
    assert found.samples == 4
    assert found.passed
    with pytest.raises(InputError, match="got no data"):
        octavo.verify(q, [])


def test_as_data():
    found = octavo.verify(quantized("residual", "static"), runtimes=["torch"]).to_dict()
    assert found["passed"] is True
    (runtime,) = found["runtimes"]
    assert runtime["agreement"] == 100.0
    assert [layer["layer"] for layer in runtime["layers"]] == [
        "x",
        "relu",
        "relu_1",
        "mean",
        "classes",
    ]


@pytest.mark.parametrize(
    ("layer", "within"),
    [
        (LayerParity("a", 1, 0.0, 0.5, 20.0), True),
        (LayerParity("a", 2, 1e-5, 0.5, 20.0), True),
        (LayerParity("a", 2, 1e-3, 0.5, 60.0), False),
        (LayerParity("a", None, 0.0, 0.5, 41.0), True),
        (LayerParity("a", None, 0.0, 0.5, 39.0), False),
        (LayerParity("a", None, 0.0, 0.5, math.inf), True),
    ],
)
def test_thresholds(layer, within):
    assert layer.within(Threshold()) is within
