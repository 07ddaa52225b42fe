"""Clips on integers: the layer in front runs on integers, and the result is the oracle's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import octavo


class Skip(nn.Module):
    """What is clipped is concatenated with what can be negative, and has a zero point therefore."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.a, self.act = nn.Conv2d(3, 8, 3, padding=1), activation
        self.b, self.c = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.a(x))
        z: Tensor = self.c(torch.cat([y, self.b(y)], 1))
        return z


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.3, 0.4)])
def test_a_layer_whose_clip_is_not_what_rounding_does_runs_on_integers(
    activation: nn.Module,
) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net, x = Skip(activation), torch.randn(2, 3, 9, 9)
    q = octavo.quantize(net, calibration=[x], target="onnxruntime", progress=False)
    lowered = q.lower("onnxruntime")
    assert lowered.lowered.kernels["a"] == "onnxruntime QLinearConv"
    assert torch.equal(lowered(x), q.lower("reference")(x))
    clips = [n for n in written(q) if n.op_type == "Clip"]
    assert [n.name for n in clips] == ["act.quantized"]
    assert not [n for n in written(q) if n.op_type == "Relu"]


def test_what_rounds_integers_again_keeps_its_clip_in_between() -> None:
    """ONNX Runtime would make one rounding of the two."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 4, 1))
    x = torch.randn(2, 3, 8, 8)
    q = octavo.quantize(net, calibration=[x], target="onnxruntime", progress=False)
    assert [n.name for n in written(q) if n.op_type == "Relu"] == ["2"]
    assert torch.equal(q.lower("onnxruntime")(x), q.lower("reference")(x))


def written(q: octavo.QuantizedModel) -> list[object]:
    from octavo.runtimes.onnx.export import to_onnx
    from octavo.runtimes.onnxruntime import RUNTIME

    assert RUNTIME.onnx is not None
    return list(to_onnx(q.graph, RUNTIME.onnx.dialect).graph.node)
