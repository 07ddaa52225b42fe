"""Drafts are judged by what the oracle computes, to the bit."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn

import octavo
from octavo.flow.effort.simulation import simulated_steps, simulation_of
from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.program import run_of
from octavo.graph.qdq import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE

MODELS: Mapping[str, tuple[nn.Module, tuple[int, ...]]] = {
    "large images": (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Linear(94, 8)),
        (2, 3, 96, 96),
    ),
    "attention": (nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True), (4, 6, 16)),
    "recurrence": (nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.LSTM(8, 4)), (5, 2, 8)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_outputs_are_the_oracles(name: str, mode: str) -> None:
    torch.manual_seed(0)
    model, sizes = MODELS[name]
    x = torch.randn(sizes)
    data = [x] if mode == "static" else None
    q = octavo.quantize(model.eval(), (x,), calibration=data, mode=mode, progress=False)
    found, exact = (run(x * 1.5) for run in (simulation_of(q.graph), run_of(q.graph)))
    assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize(("outputs", "count"), [("z", 2), ("qz", 3)])
def test_integers_are_made_where_they_are_an_output(outputs: str, count: int) -> None:
    nodes = (
        Node("q", QUANTIZE, (Ref("x"), 0.1, 7, 0, 255, torch.uint8)),
        Node("y", DEQUANTIZE, (Ref("q"), 0.1, 7)),
        Node("w", DEQUANTIZE_WEIGHT, (Ref("integers"), Ref("scale"), Ref("zero"))),
        Node("z", "aten.linear.default", (Ref("y"), Ref("w"))),
    )
    constants = {
        "integers": torch.arange(-3, 3, dtype=torch.int8).reshape(2, 3),
        "scale": torch.tensor([[0.5], [0.25]]),
        "zero": torch.zeros(2, 1, dtype=torch.int32),
    }
    x = Input("x", TensorMeta((4, 3), "float32"))
    returned = [Ref(name) for name in outputs]
    graph = Graph((x,), constants, nodes, {"x": Ref("x")}, returned)
    torch.manual_seed(0)
    values = torch.randn(4, 3)
    assert len(simulated_steps(graph)[1]) == count
    for found, exact in zip(simulation_of(graph)(values), run_of(graph)(values), strict=True):
        assert found.dtype == exact.dtype
        assert torch.equal(found, exact)
