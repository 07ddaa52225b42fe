"""`octavo.nn.Experts`: against transformers' own, of every kind that has one."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from language_models import transformers
from torch import nn

import octavo
from octavo.errors import ArtifactError, PlanError
from octavo.model.nn.experts import FUNCTIONS

FOUR = octavo.weight_only_qconfig(4, group_size=32)


def experts(**settings: Any) -> Any:
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    config = transformers.MixtralConfig(
        hidden_size=32, intermediate_size=64, num_local_experts=4, **settings
    )
    config._experts_implementation = "eager"
    layer = MixtralExperts(config).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    return layer


def routed(rows: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    which = torch.stack([torch.randperm(4)[:2] for _ in range(rows)])
    return torch.randn(rows, 32), which, torch.rand(rows, 2)


def exact_of(layer: nn.Module, q: octavo.nn.Experts) -> nn.Module:
    exact = copy.deepcopy(layer)
    with torch.no_grad():
        for name, floats in q.dequantized().items():
            exact.get_parameter(name).copy_(floats)
    return exact


@pytest.mark.parametrize("function", ["silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2"])
def test_it_computes_what_the_stacked_ones_do(function: str) -> None:
    layer = experts(hidden_act=function)
    q = octavo.nn.from_float(layer, FOUR)
    assert isinstance(q, octavo.nn.Experts)
    given = routed()
    with torch.no_grad():
        torch.testing.assert_close(q(*given), exact_of(layer, q)(*given), rtol=1e-3, atol=1e-3)
        assert (q(*given) - layer(*given)).norm() > 1e-2
    assert set(FUNCTIONS) == {"silu", "gelu", "gelu_tanh", "relu", "squared_relu"}


@pytest.mark.parametrize("function", ["relu6", "gelu_10", "quick_gelu"])
def test_other_functions_stay_float(function: str) -> None:
    assert octavo.nn.quantized_form(experts(hidden_act=function)) is None


def test_a_row_that_no_expert_of_this_process_sees() -> None:
    q = octavo.nn.from_float(experts(), FOUR)
    x, which, weights = routed(2)
    which[0] = 4  # of another process
    result = q(x, which, weights)
    assert not result[0].any()
    assert result[1].any()


def test_transposed_with_biases() -> None:
    layer = experts()
    for name in ("gate_up_proj", "down_proj"):
        weight = getattr(layer, name)
        setattr(layer, name, nn.Parameter(weight.detach().transpose(1, 2).contiguous()))
        setattr(layer, f"{name}_bias", nn.Parameter(torch.randn(4, weight.shape[1])))
    layer.is_transposed, layer.has_bias = True, True
    layer.config._experts_implementation = "batched_mm"
    q = octavo.nn.from_float(layer, FOUR)
    given = routed()
    with torch.no_grad():
        torch.testing.assert_close(q(*given), exact_of(layer, q)(*given), rtol=1e-3, atol=1e-3)
    assert q.float_shapes() == {n: tuple(t.shape) for n, t in layer.state_dict().items()}


def test_a_description_makes_the_same_module() -> None:
    q = octavo.nn.from_float(experts(), FOUR)
    described = json.loads(json.dumps(q.describe()))
    twin, given = octavo.nn.from_description(described, q.tensors()), routed()
    assert torch.equal(twin(*given), q(*given))
    assert repr(twin) == repr(q)
    assert "num_experts=4, hidden=32, intermediate=64" in repr(q)
    with pytest.raises(ArtifactError, match="4 layers"):
        octavo.nn.from_description({**described, "parts": {"down_proj": []}}, q.tensors())
    with pytest.raises(ArtifactError, match=r"'gate_up_proj.9' is no layer"):
        octavo.nn.from_description(described, {**q.tensors(), "gate_up_proj.9.weight": given[0]})
    wrong = {**described["settings"], "has_gate": False}
    with pytest.raises(ArtifactError):
        octavo.nn.from_description({**described, "settings": wrong}, q.tensors())


def test_what_has_a_gate_of_its_own_has_no_form() -> None:
    layer = experts()

    class Clamped(type(layer)):  # type: ignore[misc]
        def _apply_gate(self, x: torch.Tensor) -> torch.Tensor:
            return x.chunk(2, -1)[0].clamp(-1, 1)

    other = copy.deepcopy(layer)
    other.__class__ = Clamped
    assert octavo.nn.quantized_form(other) is None
    layer.act_fn = nn.Hardtanh()
    assert octavo.nn.quantized_form(layer) is None


def test_groups_that_do_not_divide() -> None:
    with pytest.raises(PlanError, match="group_size 48 does not divide"):
        octavo.nn.from_float(experts(), octavo.weight_only_qconfig(4, group_size=48))
