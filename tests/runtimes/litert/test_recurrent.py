"""Recurrent layers on LiteRT: step by step from integer weights, with no state that stays."""

from __future__ import annotations

import pytest
import torch
from sweeping import swept
from torch import Tensor, nn

import octavo


class Reader(nn.Module):
    """The last step of a recurrent layer, and a linear one."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.hidden_size * (1 + layer.bidirectional), 3)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.layer(x)
        return self.head(steps[:, -1] if self.layer.batch_first else steps[-1])


class Cells(nn.Module):
    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(cell.hidden_size, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(x[:, 1], self.cell(x[:, 0]))
        return self.head(state[0] if isinstance(state, tuple) else state)


CASES = {
    "lstm": Reader(nn.LSTM(6, 5, batch_first=True)),
    "gru": Reader(nn.GRU(6, 5, batch_first=True)),
    "relu": Reader(nn.RNN(6, 5, nonlinearity="relu")),
    "two layers in both directions": Reader(nn.LSTM(6, 5, 2, bidirectional=True)),
    "gru in both directions without biases": Reader(
        nn.GRU(6, 5, bias=False, bidirectional=True, batch_first=True)
    ),
    "lstm cells": Cells(nn.LSTMCell(6, 5)),
    "gru cells": Cells(nn.GRUCell(6, 5)),
}


@pytest.mark.parametrize("name", swept(CASES, ["lstm", "gru"]))
@pytest.mark.parametrize("mode", swept(["static", "dynamic"], ["static"]))
def test_a_layer_is_the_oracles(name, mode, agrees):
    x = torch.randn(4, 7, 6)
    calibration = [(x,)] if mode == "static" else None
    run = agrees(CASES[name], x, calibration=calibration, mode=mode)
    assert any("DEQUANTIZE" in kind for kind in run.operators)  # of integer weights


def test_calls_do_not_depend_on_those_before():
    pytest.importorskip("ai_edge_litert")
    torch.manual_seed(0)
    x = torch.randn(2, 7, 6)
    q = octavo.quantize(CASES["lstm"].eval(), (x,), calibration=[(x,)], target="edge")
    lowered = q.lower("litert")
    first = lowered(x)
    lowered(torch.randn(2, 7, 6))
    assert lowered(x).equal(first)


def test_projections_are_refused(refusal):
    layer = nn.LSTM(6, 5, proj_size=3)
    layer.hidden_size, reader = 3, None
    reader = Reader(layer)
    layer.hidden_size = 5
    assert "it has projections" in refusal(reader, torch.randn(4, 7, 6))
