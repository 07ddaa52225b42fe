"""The advice: it names the culprit, and its code does what it says."""

from __future__ import annotations

import ast

import pytest
import torch
from culprits import planted
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import octavo
from octavo.measuring.layers.repair import Repair, repair_code, repairs
from octavo.quantization.plan import Plan


@pytest.mark.parametrize("kind", ["weight", "activation"])
@pytest.mark.parametrize("with_sensitivity", [False, True])
def test_a_planted_culprit_comes_first(kind: str, with_sensitivity: bool) -> None:
    for seed in range(4):
        net, x, culprit = planted(kind, seed)
        q = octavo.quantize(net, calibration=[x], target="x86")
        errors = octavo.layer_errors(net, q, [x], progress=False)
        found = None
        if with_sensitivity:
            found = octavo.sensitivity(
                net, data=[x], calibration=[x], target="x86", exact=False, progress=False
            )
        assert culprit in repairs(errors, q.plan, found)[0].parts


def test_the_code_makes_the_model_better() -> None:
    net, x, culprit = planted("weight", 0)
    q = octavo.quantize(net, calibration=[x], target="x86")
    errors = octavo.layer_errors(net, q, [x], progress=False)
    code = repair_code(repairs(errors, q.plan, count=1), q.plan)
    assert f'.set_module_name("{culprit}", None)  # ' in code
    scope = {"octavo": octavo, "model": net, "loader": [x]}
    exec(code, scope)  # noqa: S102  (our own)
    repaired = scope["q"]
    assert repaired.plan.tensors[culprit].runs == "float"

    def noise(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(x) - net(x)).norm())

    assert noise(repaired) < 0.2 * noise(q)


@given(st.text(st.characters()), st.text(st.characters()))
def test_a_name_is_a_name_whatever_it_holds(name: str, reason: str) -> None:
    """Names come from files; this code is copied and run."""
    plan = Plan("x86", "static", {})
    code = repair_code([Repair("layer", (name,), reason)], plan)
    assert code.replace("\n", "").isprintable()
    rules, call = ast.parse(code).body
    assert ast.unparse(call).startswith("q = octavo.quantize(model, ")
    assert isinstance(rules, ast.Assign)
    assert isinstance(rules.value, ast.Call)
    first, second = map(ast.literal_eval, rules.value.args)
    assert (first, second) == (name, None)
    assert ast.unparse(rules.value.func) == "octavo.QConfigMapping().set_module_name"


def test_what_is_conspicuous_is_said() -> None:
    net, x, _ = planted("weight", 1)
    q = octavo.quantize(net, calibration=[x], target="x86")
    errors = octavo.layer_errors(net, q, [x], progress=False)
    reason = repairs(errors, q.plan)[0].reason
    assert "dB by itself" in reason


def test_only_weights() -> None:
    net, x, _ = planted("weight", 1)
    q = octavo.quantize(net, x, mode="weight_only", target="x86")
    errors = octavo.layer_errors(net, q, [x], progress=False)
    found = repairs(errors, q.plan)
    assert 'mode="weight_only"' in repair_code(found, q.plan)
    assert "calibration" not in repair_code(found, q.plan)
