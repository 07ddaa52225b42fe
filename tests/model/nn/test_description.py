"""A module is described, and made again of the description and its tensors."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.errors import ArtifactError

LAYERS: list[nn.Module] = [
    nn.Linear(8, 4),
    nn.Linear(8, 4, bias=False),
    nn.Embedding(10, 8, padding_idx=2),
    nn.LSTM(8, 4, num_layers=2, bidirectional=True, proj_size=2),
    nn.RNN(8, 4, nonlinearity="relu"),
    nn.GRUCell(8, 4),
    nn.MultiheadAttention(8, 2),
    nn.MultiheadAttention(8, 2, add_bias_kv=True),
    nn.Conv1d(8, 4, 1),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_there_and_back(layer: nn.Module, bits: int) -> None:
    q = octavo.nn.from_float(layer, octavo.weight_only_qconfig(bits, symmetric=bits == 8))
    text = json.dumps(q.describe())
    other = octavo.nn.from_description(json.loads(text), q.tensors())
    assert str(other) == str(q)
    x = torch.randint(0, 10, (3,)) if isinstance(layer, nn.Embedding) else torch.randn(3, 8)
    x = x.t() if isinstance(layer, nn.Conv1d) else x
    args = (x, x, x) if isinstance(layer, nn.MultiheadAttention) else (x,)
    ours, again = q(*args), other(*args)
    if isinstance(ours, tuple):
        ours, again = ours[0], again[0]
    assert torch.equal(ours, again)


def sized(in_features: Any, bias: bool = True) -> dict[str, Any]:
    settings = {"in_features": in_features, "out_features": 4, "bias": bias, "transposed": False}
    return {"settings": settings}


def hostile() -> list[tuple[dict[str, Any], str]]:
    return [
        ({"type": "Sequential"}, "no quantized module 'Sequential'"),
        ({"type": ["Linear"]}, "no quantized module"),
        ({"settings": {}}, "its settings are"),
        (sized(2**40), "its settings are"),
        (sized(16), "'weight' of a Linear"),
        (sized(-8), "Linear"),
        (sized("8"), "there is no Linear of"),
        (sized(8, bias=False), "'bias' of a Linear"),
        ({"weights": {}}, "'weight' of a Linear is int8"),
        ({"weights": {"weight": {"dtype": "int9"}}}, "not the description of a Linear"),
        ({"weights": {"weight": {"dtype": "int8", "channel_axis": 7}}}, "there is no Linear"),
        ({"weights": {"weight": {"dtype": "uint8", "channel_axis": 0}}}, "'weight' of a Linear"),
        ({"activation": 3}, "not the description"),
        ({"dtype": "complex64"}, "its dtype 'complex64'"),
    ]


@pytest.mark.parametrize(("changed", "message"), hostile())
def test_what_does_not_fit_is_refused(changed: dict[str, Any], message: str) -> None:
    q = octavo.nn.from_float(nn.Linear(8, 4), octavo.dynamic_qconfig())
    with pytest.raises(ArtifactError, match=message):
        octavo.nn.from_description(q.describe() | changed, q.tensors())


def test_a_tower_of_layers_is_not_built() -> None:
    q = octavo.nn.from_float(nn.LSTM(8, 4), octavo.dynamic_qconfig())
    described = q.describe()
    described["settings"]["num_layers"] = 10**9
    with pytest.raises(ArtifactError, match="more than the 8 tensors that are there"):
        octavo.nn.from_description(described, q.tensors())


def test_a_missing_tensor_is_named() -> None:
    q = octavo.nn.from_float(nn.Linear(8, 4), octavo.dynamic_qconfig())
    tensors = {name: t for name, t in q.tensors().items() if name != "weight_scale"}
    with pytest.raises(ArtifactError, match="'weight_scale' of a Linear is missing"):
        octavo.nn.from_description(q.describe(), tensors)


@pytest.mark.parametrize(
    "layer", [*LAYERS, nn.MultiheadAttention(8, 2, bias=False, kdim=6), nn.Linear(3, 2)], ids=str
)
def test_it_knows_the_state_of_the_float_layer(layer: nn.Module) -> None:
    q = octavo.nn.from_float(layer, octavo.weight_only_qconfig())
    assert q.float_shapes() == {name: tuple(t.shape) for name, t in layer.state_dict().items()}


def test_a_transposed_layer_knows_its_own_state() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    layer = pytorch_utils.Conv1D(6, 8)
    q = octavo.nn.from_float(layer, octavo.weight_only_qconfig())
    assert (q.float_shapes()["weight"], q.state_dict()["weight"].shape) == ((8, 6), (6, 8))
    x = torch.randn(3, 8)
    assert float((q(x) - layer(x)).norm() / layer(x).norm()) < 0.02
    again = octavo.nn.from_description(q.describe(), q.tensors())
    assert torch.equal(again(x), q(x))
