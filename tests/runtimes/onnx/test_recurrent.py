"""Recurrent layers as ONNX: what torch gives, with their last states."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import octavo

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


class LSTM(nn.Module):
    """All outputs; states come with the batch as axis 0."""

    def __init__(self, **options):
        super().__init__()
        self.layer = nn.LSTM(24, 32, **options)

    def forward(self, x, *states):
        x = x if self.layer.batch_first else x.transpose(0, 1)
        given = [tuple(state.transpose(0, 1) for state in states)] if states else []
        return self.layer(x, *given)


class LSTMCell(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(24, 32)

    def forward(self, x, h, c):
        return self.cell(x[:, 0], (h[:, 0], c[:, 0]))


def _operators(q, dialect):
    from octavo.runtimes import RUNTIMES
    from octavo.runtimes.onnx.export import to_onnx

    written = to_onnx(q.graph, RUNTIMES[dialect].onnx.dialect)
    return written, [node.op_type for node in written.graph.node]


# What rounding the states as well leaves; several layers or directions add up. Measured over three
# seeds at sizes from 8 to 512 and up to 64 steps: 59 to 66 dB in one layer, 44 to 56 dB in two.
@pytest.mark.parametrize(
    ("make", "states", "least_db"),
    [
        (lambda: LSTM(), 0, 55),
        (lambda: LSTM(bias=False, batch_first=True), 0, 55),
        (lambda: LSTM(bidirectional=True, batch_first=True), 0, 50),
        (lambda: LSTM(num_layers=2), 0, 43),
        (lambda: LSTM(num_layers=2, bidirectional=True, batch_first=True), 4, 43),
        (lambda: LSTM(batch_first=True), 1, 45),
        (LSTMCell, 1, 45),
    ],
)
def test_a_dynamic_lstm_is_one_of_integers(make, states, least_db, run_onnx):
    torch.manual_seed(0)
    given = [torch.randn(2, states, 32) for _ in range(2)] if states else []
    args = (torch.randn(2, 9, 24), *given)
    q = octavo.quantize(make(), args, mode="dynamic", target="onnxruntime", progress=False)
    written, kinds = _operators(q, "onnxruntime")
    assert "DynamicQuantizeLSTM" in kinds
    assert not {"LSTM", "DynamicQuantizeLinear", "DequantizeLinear"} & set(kinds)
    assert {(used.domain, used.version) for used in written.opset_import} == {
        ("", 20),
        ("com.microsoft", 1),
    }
    run_onnx(written, q.graph, args)  # valid, and runs as it is written
    lowered = q.lower("onnxruntime")
    assert set(lowered.lowered.kernels.values()) == {"onnxruntime DynamicQuantizeLSTM"}
    assert not lowered.lowered.fallbacks
    expected = q.lower("reference")(*args)
    for want, have in zip(_tensors(expected), _tensors(lowered(*args)), strict=True):
        noise = (want - have).square().sum()
        assert 10 * torch.log10(want.square().sum() / noise) >= least_db


def _tensors(results):
    return torch.utils._pytree.tree_leaves(results)


@pytest.mark.parametrize(
    ("dialect", "mode", "per_token"),
    [
        ("onnxruntime", "weight_only", False),
        ("onnxruntime", "dynamic", True),
        ("openvino", "dynamic", False),
    ],
)
def test_other_lstms_are_float(dialect, mode, per_token):
    qconfig = octavo.dynamic_qconfig("onnxruntime", per_token=True) if per_token else None
    q = octavo.quantize(
        LSTM(batch_first=True),
        torch.randn(2, 9, 24),
        mode=mode,
        qconfig=qconfig,
        target="onnxruntime",
        progress=False,
    )
    written, kinds = _operators(q, dialect)
    assert "LSTM" in kinds
    assert "DynamicQuantizeLSTM" not in kinds
    assert {used.domain for used in written.opset_import} == {""}


def test_a_file_for_cpus_that_overflow_has_a_float_lstm(tmp_path):
    """Its integers are ones whose products overflow there; in a session of ours they do not."""
    import onnx

    found = []
    for target in ("onnxruntime", "x86-avx2"):
        x, file = torch.randn(2, 9, 24), tmp_path / f"{target}.onnx"
        q = octavo.quantize(LSTM(), x, mode="dynamic", target=target, progress=False)
        octavo.export_onnx(q, file)
        found.append(
            {"LSTM", "DynamicQuantizeLSTM"} & {n.op_type for n in onnx.load(file).graph.node}
        )
    assert found == [{"DynamicQuantizeLSTM"}, {"LSTM"}]
