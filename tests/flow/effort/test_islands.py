"""What an effort leaves in float: which nodes, why, and that int8 keeps its share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.flow.effort.islands import (
    additions,
    ends,
    floats_cost_little,
    planner_of,
    with_floats,
)
from octavo.flow.effort.recipes import RECIPES, observing
from octavo.graph.graph import Graph
from octavo.numerics.observers import Entropy, FixedRange
from octavo.quantization.plan import Plan
from octavo.quantization.reasons import ReasonKind


class Gated(nn.Module):
    """A first layer, a residual block with a gate, and a last layer."""

    def __init__(self, width: int = 32, classes: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 1)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.gate = nn.Conv2d(width, width, 1)
        self.last = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        y = self.inner(x)
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        scores: Tensor = self.last((x + y).relu().mean((2, 3)))
        return scores


def planned(
    mapping: octavo.QConfigMapping | None = None, target: str = "x86", classes: int = 4
) -> tuple[Graph, Plan]:
    torch.manual_seed(0)
    graph = octavo.capture(Gated(classes=classes).eval(), torch.randn(2, 1, 8, 8))
    return graph, octavo.plan(graph, mapping, target)


def floats(plan: Plan) -> set[str]:
    return {name for name, t in plan.tensors.items() if t.reason.kind is ReasonKind.EFFORT}


def test_additions_are_a_tenth_of_the_values() -> None:
    """Of 4x4 pixels and 8 channels, a residual block makes 3 x 128 values, the input 16."""

    class Block(nn.Module):
        def __init__(self, inner: int) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(8, inner, 1), nn.Conv2d(inner, 8, 1)
            self.last = nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.last(x + self.narrow(self.wide(x).relu()))
            return result

    def found(inner: int) -> list[str]:
        graph = octavo.capture(Block(inner).eval(), torch.randn(2, 8, 4, 4))
        return additions(graph, octavo.plan(graph))

    assert found(inner=8) == []  # 8 channels of 24
    assert found(inner=96) == ["add"]  # 8 of 112


def test_ends_are_few_of_the_multiply_adds_and_weights() -> None:
    """Of two samples of 8x8 pixels, the first layer has 128 x 32 = 4,096 of 1,188,096 multiply-adds
    and 32 of 10,336 weights; the last one has few multiply-adds.
    """
    graph, plan = planned(classes=2)
    assert ends(graph, plan) == ["last", "first"]  # 0.35 % of the multiply-adds, 96 weights
    graph, plan = planned(classes=4)
    assert ends(graph, plan) == ["first"]  # 160 weights of 10,400 would be 1.5 %
    graph, plan = planned(classes=100)
    assert ends(graph, plan) == ["first"]  # the last alone has a quarter of the weights


def test_layers_that_are_float_already_are_not_ends() -> None:
    graph, plan = planned(octavo.QConfigMapping().set_module_name("first", None))
    assert ends(graph, plan) == []


def test_the_plan_leaves_them_in_float_with_a_reason() -> None:
    graph, plan = planned()
    planner = planner_of(graph, None, "x86", "static", "float32")
    changed = with_floats(plan, planner, ["add"])
    assert floats(changed) == {"add"}
    assert not changed.runs_int8("add")
    assert changed.runs_int8("inner")
    assert "add" not in changed.quantized
    assert str(changed.tensors["add"].reason) == (
        "float: the outputs are nearer to the float model's so"
    )
    assert floats(with_floats(changed, planner, ["first"])) == {"add", "first"}
    assert Plan.from_json(changed.to_json()) == changed


def test_rules_of_the_user_stand() -> None:
    qconfig = octavo.static_qconfig()
    mapping = octavo.QConfigMapping().set_object_type("add", qconfig)
    graph, plan = planned(mapping)
    planner = planner_of(graph, mapping, "x86", "static", "float32")
    changed = with_floats(plan, planner, ["add", "first"])
    assert changed.runs_int8("add")
    assert not changed.runs_int8("first")
    assert floats(changed) == {"first"}
    assert len(mapping.rules) == 1


def test_observers_are_kept() -> None:
    graph, plan = planned()
    planner = planner_of(graph, None, "x86", "static", "float32")
    changed = with_floats(observing(plan, Entropy()), planner, ["add"])
    both = [n for n, t in changed.quantized.items() if t.kind != "weight" and n in plan.quantized]
    seen = {changed.quantized[name].spec.observer for name in both}  # type: ignore[union-attr]
    assert {type(observer) for observer in seen} <= {Entropy, FixedRange}
    assert Entropy() in seen


@pytest.mark.parametrize(
    ("target", "keeps"), [("x86", True), ("x86-avx2", True), ("edge", False), ("openvino", False)]
)
def test_only_where_floats_cost_little(target: str, keeps: bool) -> None:
    _, plan = planned(target=target)
    assert floats_cost_little(plan) is keeps
    named = [step.name for step in RECIPES["best"].steps if step.suits(plan)]
    assert ("ends in float" in named) is keeps


def test_best_keeps_what_brings_the_outputs_nearer() -> None:
    """Judged on data that it has not seen; all but a hundredth of the multiply-adds stay int8."""
    torch.manual_seed(0)
    net = Gated(classes=2).eval()
    chance = torch.Generator().manual_seed(1)
    data = [torch.randn(32, 1, 8, 8, generator=chance) for _ in range(8)]
    q = octavo.quantize(net, calibration=data, target="x86", effort="best", progress=False)
    steps = {step["step"]: step for step in q.provenance["steps"]}
    kept = [name for name in steps if name.endswith("in float") and steps[name]["kept"]]
    assert kept, steps
    assert all(steps[name]["after_db"] > steps[name]["before_db"] for name in kept)
    assert floats(q.plan)
    assert q.summary().share >= 0.99
    gone = [
        octavo.quantize(net, calibration=data, target=t, effort="best", progress=False).plan
        for t in ("edge", "openvino")
    ]
    assert not any(map(floats, gone))
