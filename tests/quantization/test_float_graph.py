"""The float graph behind a quantized one computes what the model did, but for its weights."""

from __future__ import annotations

import pytest
import torch
from running import run_graph
from torch import nn

import octavo
from octavo.quantization.float_graph import without_rounding


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_nothing_is_rounded_but_the_weights(mode: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    x = torch.randn(2, 3, 8, 8)
    calibration = [x] if mode == "static" else None
    q = octavo.quantize(net, x, mode=mode, calibration=calibration, progress=False)
    plain = without_rounding(q.graph)
    assert not any(node.op.startswith("octavo.") for node in plain.nodes)
    with torch.no_grad():
        expected = net(x)
    assert torch.allclose(run_graph(plain, x), expected, atol=0.05)
