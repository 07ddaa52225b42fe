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
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_there_and_back(layer: nn.Module, bits: int) -> None:
    q = octavo.nn.from_float(layer, octavo.weight_only_qconfig(bits, symmetric=bits == 8))
    text = json.dumps(q.describe())
    other = octavo.nn.from_description(json.loads(text), q.tensors())
    assert str(other) == str(q)
    x = torch.randint(0, 10, (3,)) if isinstance(layer, nn.Embedding) else torch.randn(3, 8)
    ours, again = q(x), other(x)
    if isinstance(ours, tuple):
        ours, again = ours[0], again[0]
    assert torch.equal(ours, again)


def hostile() -> list[tuple[dict[str, Any], str]]:
    return [
        ({"type": "Sequential"}, "no quantized module 'Sequential'"),
        ({"type": ["Linear"]}, "no quantized module"),
        ({"settings": {}}, "its settings are"),
        ({"settings": {"in_features": 2**40, "out_features": 4, "bias": True}}, "settings are"),
        (
            {"settings": {"in_features": 16, "out_features": 4, "bias": True}},
            "'weight' of a Linear",
        ),
        ({"settings": {"in_features": -8, "out_features": 4, "bias": True}}, "Linear"),
        ({"settings": {"in_features": 8, "out_features": 4, "bias": False}}, "'bias' of a Linear"),
        ({"settings": {"in_features": "8", "out_features": 4, "bias": True}}, "no Linear of"),
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
