"""The float graph behind a quantized one computes what the model did, but for its weights."""

from __future__ import annotations

import pytest
import torch
from running import run_graph
from torch import nn

import octavo
from octavo.quantization.float_graph import with_floats, without_rounding


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


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embed(x)
        result: torch.Tensor = self.attention(y, y, y, need_weights=False)[0]
        return result


def attending() -> tuple[octavo.QuantizedModel, torch.Tensor]:
    torch.manual_seed(0)
    rule = octavo.QConfigMapping().set_object_type(
        "scaled_dot_product_attention", octavo.static_qconfig()
    )
    x = torch.randn(4, 6, 8)
    return octavo.quantize(Attending(), calibration=[x], qconfig=rule, progress=False), x


def test_all_layers_in_float_are_the_float_graph() -> None:
    q, x = attending()
    graph = with_floats(q.graph, list(q.graph.by_name))
    assert not any(node.op.startswith("octavo.") for node in graph.nodes)
    # Attention's rounded probabilities are no quantize nodes, so that the other way keeps them.
    expected = run_graph(without_rounding(q.graph), x)
    assert torch.allclose(run_graph(graph, x), expected, atol=0.02)
    assert not torch.equal(run_graph(graph, x), expected)


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_one_layer_in_float_reads_what_is_not_rounded(mode: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    x = torch.randn(16, 8)
    calibration = [x] if mode == "static" else None
    q = octavo.quantize(net, x, mode=mode, calibration=calibration, progress=False)
    graph = with_floats(q.graph, ["2"])
    layer = graph.by_name["2"]
    assert layer.args[0].name == "1"
    assert graph.constants[layer.args[1].name].dtype == torch.float32
    before, after = q.graph.by_name, graph.by_name
    assert [after[name] for name in ("0", "4")] == [before[name] for name in ("0", "4")]
    assert with_floats(q.graph, []).nodes == q.graph.nodes
