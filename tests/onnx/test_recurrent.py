"""Recurrent layers as ONNX: what torch gives, with their last states."""

from __future__ import annotations

import pytest
import torch
from torch import nn

LAYERS = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "rnn": (nn.RNN, {}),
    "rnn relu": (nn.RNN, {"nonlinearity": "relu"}),
}
FORMS = {
    "plain": {},
    "without biases": {"bias": False},
    "two layers in both directions": {
        "num_layers": 2,
        "bidirectional": True,
        "batch_first": True,
    },
}


class Steps(nn.Module):
    """The batch is axis 0 of what is given, whatever the layer takes."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, *states):
        states = [state.transpose(0, 1) for state in states]
        x = x if self.layer.batch_first else x.transpose(0, 1)
        return self.layer(x, *([tuple(states) if len(states) > 1 else states[0]] if states else []))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("form", FORMS)
def test_layers(name, form, agrees):
    kind, options = LAYERS[name]
    agrees(Steps(kind(6, 5, **options, **FORMS[form])), torch.randn(2, 7, 6))


@pytest.mark.parametrize("name", LAYERS)
def test_states_that_are_given(name, agrees):
    kind, options = LAYERS[name]
    layer = kind(6, 5, num_layers=2, batch_first=True, **options)
    states = [torch.randn(2, 2, 5) for _ in range(1 + (name == "lstm"))]
    agrees(Steps(layer), torch.randn(2, 7, 6), *states)


class Cell(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x, *states):
        return self.cell(x, tuple(states) if len(states) > 1 else states[0])


CELLS = {
    "lstm": (lambda: nn.LSTMCell(6, 5), 2),
    "lstm without biases": (lambda: nn.LSTMCell(6, 5, bias=False), 2),
    "gru": (lambda: nn.GRUCell(6, 5), 1),
    "rnn": (lambda: nn.RNNCell(6, 5), 1),
    "rnn relu": (lambda: nn.RNNCell(6, 5, nonlinearity="relu"), 1),
}


@pytest.mark.parametrize("name", CELLS)
def test_cells(name, agrees):
    make, count = CELLS[name]
    agrees(Cell(make()), torch.randn(2, 6), *(torch.randn(2, 5) for _ in range(count)))


def test_a_projection_is_refused(refusal):
    message = refusal(nn.LSTM(6, 5, proj_size=3, batch_first=True), torch.randn(2, 7, 6))
    assert "aten.lstm.input" in message
    assert "nn.Linear" in message
