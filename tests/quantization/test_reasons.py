"""Reasons: what decides looks at their kind; plans of version 1 have them as texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.errors import PlanError
from octavo.quantization.placement import fusion, rules
from octavo.quantization.reasons import Reason, ReasonKind

VERSION_1 = Path(__file__).parent / "plan_of_version_1.json"


class Reasons(nn.Module):
    """Most reasons there are: the model whose plan the file of version 1 holds."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 8)
        self.first, self.second, self.third = (nn.Linear(8, 8) for _ in range(3))
        self.dynamic, self.integers, self.narrow, self.plain = (nn.Linear(8, 8) for _ in range(4))
        self.norm, self.odd, self.gelu = nn.LayerNorm(8), nn.Softplus(), nn.GELU()
        self.last = nn.Linear(8, 6)

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)).reshape(x.shape[0], 2, 4).flatten(1)
        x = self.second(x) + 2.0
        x = torch.softmax(self.third(self.odd(x)), -1)
        x = self.narrow(self.integers(self.dynamic(self.norm(x))))
        x = torch.relu(self.plain(self.gelu(x)))
        left, right = self.last(x + self.words(tokens).mean(1)).split(3, 1)
        return left * right


@pytest.fixture(scope="module")
def plan() -> octavo.Plan:
    example = (torch.zeros(2, 3, dtype=torch.long), torch.randn(2, 8))
    rules = (
        octavo.QConfigMapping()
        .set_module_name("plain", None)
        .set_module_name("narrow", torch.bfloat16)
        .set_module_name("dynamic", octavo.dynamic_qconfig())
        .set_module_name("gelu", octavo.dynamic_qconfig())
        .set_module_name("integers", octavo.weight_only_qconfig())
        .set_object_type("mean", torch.bfloat16)
    )
    return octavo.plan(octavo.capture(Reasons().eval(), example), rules)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ("first.weight", ReasonKind.WEIGHT),
        ("first", ReasonKind.FUSED),
        ("relu", ReasonKind.READ),
        ("flatten", ReasonKind.SHARED),
        ("second", ReasonKind.UNREAD),
        ("add", ReasonKind.TENSORS),
        ("odd", ReasonKind.NO_KERNEL),
        ("softmax", ReasonKind.DEFAULT),
        ("dynamic", ReasonKind.RETURNS_FLOAT),
        ("integers", ReasonKind.RETURNS_FLOAT),
        ("narrow", ReasonKind.RULE),
        ("gelu", ReasonKind.NO_KERNEL),
        ("plain", ReasonKind.RULE),
        ("mean", ReasonKind.RULE),
        ("mul", ReasonKind.SURROUNDINGS),
    ],
)
def test_kinds(plan: octavo.Plan, tensor: str, kind: ReasonKind) -> None:
    assert plan.tensors[tensor].reason.kind is kind


def test_a_plan_of_version_1_is_the_plan_of_today(plan: octavo.Plan) -> None:
    text = VERSION_1.read_text(encoding="utf-8")
    assert octavo.Plan.from_json(text) == plan
    words = {tensor["tensor"]: tensor["reason"] for tensor in json.loads(text)["tensors"]}
    assert {name: str(tensor.reason) for name, tensor in plan.tensors.items()} == words


@pytest.mark.parametrize(
    "text",
    [
        'float: its padding="same" differs between the sides',
        "float: add_3 reads it in float",
        "float: relu6 runs in int8 only fused behind another layer, unless a rule asks",
        "float: it has no weights",
        "a size, or a list of tensors",
        "stem.0 reads it in int8",
    ],
)
def test_texts_of_version_1_stay_as_they_are(text: str) -> None:
    assert str(Reason.from_json(text)) == text


def test_what_reasons_say_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relu that a rule keeps float is not taken into the kernel before it, however it is said."""
    graph = octavo.capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4))
    rule = octavo.QConfigMapping().set_module_name("1", None)
    said = fusion.fuse

    def reworded(context, kept, placement):
        for name, reason in placement.reasons.items():
            placement.reasons[name] = Reason(reason.kind, "as you wished")
        said(context, kept, placement)

    monkeypatch.setattr(rules, "fuse", reworded)
    relu = octavo.plan(graph, rule).tensors["1"]
    assert (relu.runs, str(relu.reason)) == ("float", "float: as you wished")


@pytest.mark.parametrize(
    "reason",
    [None, 3, {}, {"kind": "whim", "words": "x"}, {"kind": "rule"}, {"kind": "rule", "words": 1}],
)
def test_a_reason_that_is_none_is_refused(plan: octavo.Plan, reason: object) -> None:
    data = json.loads(plan.to_json())
    data["tensors"][0]["reason"] = reason
    with pytest.raises(PlanError, match="not the JSON of a plan"):
        octavo.Plan.from_json(json.dumps(data))
