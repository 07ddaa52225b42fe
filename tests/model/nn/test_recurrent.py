"""LSTM, GRU, RNN and their cells."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import octavo
from octavo.errors import InputError

LAYERS: dict[str, nn.Module] = {
    "LSTM": nn.LSTM(8, 12, num_layers=2, bidirectional=True),
    "LSTM, batch first": nn.LSTM(8, 12, batch_first=True, bias=False),
    "LSTM, projected": nn.LSTM(8, 12, proj_size=5),
    "GRU": nn.GRU(8, 12, num_layers=2, bidirectional=True),
    "RNN": nn.RNN(8, 12, nonlinearity="relu"),
}
QCONFIGS = {
    "dynamic": octavo.dynamic_qconfig(),
    "int8": octavo.weight_only_qconfig(),
    "int4": octavo.weight_only_qconfig(4),
}


def far(exact: Tensor, other: Tensor) -> float:
    return float((exact - other).norm() / exact.norm())


@pytest.mark.parametrize("how", QCONFIGS)
@pytest.mark.parametrize("name", LAYERS)
def test_it_computes_what_the_captured_layer_does(name: str, how: str) -> None:
    layer, x = LAYERS[name], torch.randn(5, 3, 8)
    q = octavo.nn.from_float(layer, QCONFIGS[how])
    graph = octavo.quantize(layer, x, qconfig=QCONFIGS[how], progress=False)
    ours: Any = q(x)
    bound = 0.15 if how == "int4" else 0.02
    assert far(layer(x)[0], ours[0]) < bound
    assert far(graph(x)[0], ours[0]) < 1e-4


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_packed_sequences_and_states(name: str) -> None:
    layer = LAYERS[name]
    q = octavo.nn.from_float(layer, octavo.dynamic_qconfig())
    packed = pack_padded_sequence(torch.randn(5, 3, 8), [5, 2, 4], enforce_sorted=False)
    exact, state = layer(packed)
    ours, own_state = q(packed)
    assert torch.equal(ours.batch_sizes, exact.batch_sizes)
    assert far(exact.data, ours.data) < 0.02
    again = q(packed, own_state)[0].data
    assert far(layer(packed, state)[0].data, again) < 0.02
    assert far(again, ours.data) > 0.02  # the state counts


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(kind: type[nn.Module]) -> None:
    cell, x = kind(8, 12), torch.randn(3, 8)
    q = octavo.nn.from_float(cell, octavo.weight_only_qconfig())
    state: Any = None
    own: Any = None
    for _ in range(3):
        state, own = cell(x, state), q(x, own)
    pairs = zip(state, own, strict=True) if isinstance(state, tuple) else [(state, own)]
    assert all(far(exact, ours) < 0.02 for exact, ours in pairs)
    alone, ours = cell(x[0]), q(x[0])
    alone, ours = (y[0] if isinstance(y, tuple) else y for y in (alone, ours))
    assert ours.shape == (12,)
    assert far(alone, ours) < 0.02


def test_it_takes_a_quarter_of_the_memory_and_can_be_copied() -> None:
    layer = LAYERS["LSTM"]
    q = octavo.nn.from_float(layer, octavo.weight_only_qconfig())
    weights = sum(p.numel() for p in layer.parameters() if p.dim() > 1)
    assert sum(t.numel() for t in q.state_dict().values() if t.dtype == torch.int8) == weights
    assert q.state_dict()["weight_hh_l1_reverse"].dtype == torch.int8
    x = torch.randn(5, 3, 8)
    before = q(x)[0]
    assert torch.equal(copy.deepcopy(q)(x)[0], before)
    other = octavo.nn.from_float(nn.LSTM(8, 12, num_layers=2, bidirectional=True), QCONFIGS["int8"])
    other.load_state_dict(q.state_dict())
    assert torch.equal(other(x)[0], before)


def test_bfloat16_comes_back_as_such() -> None:
    layer = nn.GRU(8, 12).bfloat16()
    q = octavo.nn.from_float(layer, octavo.weight_only_qconfig())
    x = torch.randn(5, 3, 8).bfloat16()
    result, state = q(x)
    assert (result.dtype, state.dtype) == (torch.bfloat16, torch.bfloat16)
    assert far(layer(x)[0].float(), result.float()) < 0.05


@pytest.mark.parametrize("name", LAYERS)
def test_one_sequence_alone_and_states(name: str) -> None:
    layer, x = LAYERS[name], torch.randn(5, 8)
    q = octavo.nn.from_float(layer, octavo.dynamic_qconfig())
    exact, states = layer(x)
    ours, own = q(x)
    assert far(exact, ours) < 0.02
    again, _ = layer(x, states)
    assert far(again, q(x, own)[0]) < 0.02
    assert far(again, ours) > 0.02


def test_a_sequence_with_a_nan_spoils_no_other() -> None:
    q = octavo.nn.from_float(LAYERS["LSTM"], octavo.dynamic_qconfig(per_token=False))
    x = torch.randn(5, 3, 8)
    x[2, 1, 0] = float("nan")
    result, (hidden, _) = q(x)
    assert bool(result[:, 1].isnan().any())
    assert not bool(result[:, [0, 2]].isnan().any())
    assert not bool(hidden[:, [0, 2]].isnan().any())


def test_a_packed_sequence_with_a_nan_spoils_no_other() -> None:
    q = octavo.nn.from_float(LAYERS["LSTM"], octavo.dynamic_qconfig(per_token=False))
    x = torch.randn(5, 3, 8)
    x[2, 1] = float("nan")
    result, _ = pad_packed_sequence(q(pack_padded_sequence(x, [5, 5, 5]))[0])
    assert bool(result[:, 1].isnan().any())
    exact, _ = q(x[:, [0, 2]])
    assert far(exact, result[:, [0, 2]]) < 0.02


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_integers_are_refused_as_torch_refuses_them(kind: type[nn.Module]) -> None:
    q = octavo.nn.from_float(kind(8, 12), octavo.weight_only_qconfig())
    with pytest.raises(InputError, match=r"of 8 inputs takes floats .*8\], not int64\[3, 8\]"):
        q(torch.ones(3, 8, dtype=torch.int64))
    with pytest.raises(
        InputError, match=r"of 8 inputs takes floats .*8\], not float32\[1, 1, 3, 8\]"
    ):
        q(torch.ones(1, 1, 3, 8))
    if not kind.__name__.endswith("Cell"):
        with pytest.raises(InputError, match=r"of 8 inputs takes floats .*, not int64\[3, 8\]"):
            q(pack_padded_sequence(torch.ones(3, 1, 8, dtype=torch.int64), [3]))


def test_states_and_inputs_of_other_sizes() -> None:
    q = octavo.nn.from_float(LAYERS["GRU"], octavo.dynamic_qconfig())
    with pytest.raises(InputError, match=r"takes states \[\(4, 3, 12\)\] .* not \[\(1, 3, 12\)\]"):
        q(torch.randn(5, 3, 8), torch.zeros(1, 3, 12))
    with pytest.raises(InputError, match="of 8 inputs takes"):
        q(torch.randn(5, 3, 9))
