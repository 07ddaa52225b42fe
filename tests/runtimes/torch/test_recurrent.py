"""Recurrent layers in the torch runtime: by Octavo's own kernels, and without them."""

from __future__ import annotations

import pytest
import torch
from decibel import sqnr_db
from torch import nn

import octavo
from octavo.numerics.native import library
from octavo.runtimes.torch.int8 import lower_to

TARGET = octavo.host_target()
KINDS = [nn.LSTM, nn.GRU, nn.RNN]
# To the oracle, which rounds no states: they have 8 bits where the input has, else 16.
NEAR = {"static": 40, "dynamic": 40, "weight_only": 80}


class Net(nn.Module):
    def __init__(self, kind) -> None:
        super().__init__()
        self.rnn = kind(8, 16, 2, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.rnn(x)


def layer_of(q):
    (name,) = (n.name for n in q.graph.nodes if n.short_op in ("lstm", "gru", "rnn_tanh"))
    return name


@pytest.mark.parametrize("with_kernels", [True, False])
@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_layers_are_the_oracles(monkeypatch, kind, mode, with_kernels):
    if not with_kernels:
        monkeypatch.setattr(library, "library", lambda: None)
    elif library.obstacle():
        pytest.skip(library.obstacle())
    model, x = Net(kind).eval(), torch.randn(2, 5, 8)
    q = octavo.quantize(model, calibration=[x], mode=mode, target=TARGET)
    assert sum(t.dtype == torch.int8 for t in q.graph.constants.values()) == 8
    expected = {} if with_kernels else {layer_of(q): library.MISSING}
    assert q.summary().fallbacks == expected
    for batch in (1, 3):
        y = torch.randn(batch, 5, 8)
        with torch.no_grad():
            floats = model(y)[0]
        assert sqnr_db(floats, q(y)[0]) > 25
        oracle = q.lower("reference")(y)
        assert sqnr_db(oracle[0], q(y)[0]) > NEAR[mode]
        states = [r[1] if kind is nn.LSTM else [r[1]] for r in (oracle, q(y))]
        for want, have in zip(*states, strict=True):
            assert sqnr_db(want, have) > NEAR[mode]


@pytest.mark.parametrize(("mode", "words"), [("static", ""), ("weight_only", ", 16 bits")])
def test_the_kernel_says_how_it_reads(mode, words):
    if library.obstacle():
        pytest.skip(library.obstacle())
    x = torch.randn(2, 5, 8)
    q = octavo.quantize(Net(nn.GRU).eval(), calibration=[x], mode=mode, target=TARGET)
    assert lower_to(q.graph, "python").kernels[layer_of(q)] == f"octavo.gru{words}"


def test_weights_that_the_kernel_holds_come_back():
    x = torch.randn(2, 5, 8)
    q = octavo.quantize(Net(nn.LSTM).eval(), (x,), mode="dynamic", target=TARGET)
    before = {n: t.clone() for n, t in q.graph.constants.items() if t.dtype == torch.int8}
    lowered = lower_to(q.graph, "python")
    if not library.obstacle():
        assert lowered.prepacked.keys() == before.keys()
    for name, unpack in lowered.prepacked.items():
        assert unpack().equal(before[name])


def test_projections_run_in_float():
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(8, 16, proj_size=4)

        def forward(self, x):
            return self.rnn(x)[0]

    x = torch.randn(5, 2, 8)
    q = octavo.quantize(Projected().eval(), (x,), mode="dynamic", target=TARGET)
    if not library.obstacle():
        assert q.summary().fallbacks[layer_of(q)] == "its states are projected"
    assert sqnr_db(q.lower("reference")(x), q(x)) > 90


def test_a_compiled_library_calls_none_of_them():
    if library.obstacle():
        pytest.skip(library.obstacle())
    x = torch.randn(2, 5, 8)
    q = octavo.quantize(Net(nn.LSTM).eval(), (x,), mode="dynamic", target=TARGET)
    reason = lower_to(q.graph, "package").fallbacks[layer_of(q)]
    assert reason == "a compiled library cannot call Octavo's own kernels"


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_run_in_the_precision_of_what_stays_float(kind, mode):
    """Float32 on every CPU; bfloat16, on every CPU, where it is asked for."""

    model, x = Net(kind).eval(), torch.randn(3, 5, 8)
    q = octavo.quantize(model, calibration=[x], mode=mode, target=TARGET)
    exact = q.lower("reference")(x)
    assert sqnr_db(exact[0], q(x)[0]) > NEAR[mode]
    assert q.summary().precision == "float32"
    narrow = q.lower("torch", precision="bfloat16")
    got = narrow(x)
    assert got[0].dtype == torch.float32
    assert 30 < sqnr_db(exact[0], got[0]) < 90
    assert sqnr_db(q.lower("reference", precision="bfloat16")(x)[0], got[0]) > 90
    assert narrow.summary().precision == "bfloat16"
    assert list(narrow.summary().fallbacks) == [layer_of(q)]
    assert torch.equal(narrow(x)[0], got[0])
