"""Targets are data; these are the rules that the data keeps, and what each table means."""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import torch
from capturing import captured_as
from torch import nn

import octavo
from octavo.errors import PlanError
from octavo.quantization.targets import MODES, ROLES, TARGETS, target


class Attention(nn.Module):
    """A block with what targets differ in: products, softmax, norms, activations. Its attention is
    not the operator's, since scores below zero count as zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = torch.matmul(q, k.transpose(1, 2)).relu().softmax(-1)
        y = self.out(torch.matmul(scores, v))
        y = self.head(self.norm(y))
        return self.out(torch.sigmoid(y) + torch.tanh(y))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return octavo.capture(Attention().eval(), torch.randn(2, 5, 16))


@pytest.fixture(scope="module")
def batches():
    return [torch.randn(8, 5, 16) for _ in range(2)]


@pytest.mark.parametrize("name", TARGETS)
def test_the_tables_fit_together(name):
    table = target(name)
    assert set(table.qconfigs) == set(table.operators) == set(MODES)
    for mode in MODES:
        assert table.qconfigs[mode].mode == mode
        assert table.operators[mode] <= set(ROLES)
    assert set(table.fixed_outputs) <= set(ROLES)


@cache
def captured():
    """A CNN and attention, their inputs and graphs, for all targets."""
    torch.manual_seed(0)
    cnn = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Conv2d(8, 4, 1), nn.Flatten())
    models = ((cnn.eval(), torch.randn(8, 3, 8, 8)), (Attention().eval(), torch.randn(8, 5, 16)))
    return [(model, x, octavo.capture(model, x)) for model, x in models]


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_quantizes_a_cnn_and_attention(name):
    for model, x, graph in captured():
        with warnings.catch_warnings(), captured_as(graph):
            warnings.simplefilter("ignore", octavo.OctavoWarning)
            q = octavo.quantize(model, calibration=[x], target=name)
        with torch.no_grad():
            expected = model(x)
        error = (q.lower("reference")(x) - expected).norm() / expected.norm()
        assert error < 0.05
        agreement = (q.lower("reference")(x) - q(x)).norm() / expected.norm()
        assert agreement < 0.02


def runs(graph, name: str) -> dict[str, str]:
    plan = octavo.plan(graph, target=name)
    return {t.op: t.runs for t in plan.tensors.values() if t.kind == "activation"}


def test_attention_products_are_float_on_x86_and_int8_elsewhere(graph):
    assert runs(graph, "x86")["matmul"] == "float"
    for name in ("onnxruntime", "openvino", "tensorrt", "edge"):
        assert runs(graph, name)["matmul"] == "int8"


class Projections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v))


def test_openvino_multiplies_queries_and_keys_without_zero_points_and_the_rest_in_float():
    graph = octavo.capture(Projections(), (torch.randn(2, 5, 8),))
    plan = octavo.plan(graph, target="openvino")
    schemes = {n: None if t.spec is None else str(t.spec.scheme) for n, t in plan.tensors.items()}
    assert schemes["q"] == schemes["k"] == "int8 per-tensor symmetric"
    assert schemes["v"] is None
    assert schemes["x"] == "uint8 per-tensor affine"
    x = [torch.randn(2, 5, 8)]
    q = octavo.quantize(Projections(), calibration=x, target="openvino", progress=False)
    ops = {n.short_op for n in q.graph.nodes}
    assert "scaled_dot_product_attention" in ops
    assert "attention" not in ops


def test_what_is_never_negative_keeps_all_its_steps_in_a_product():
    class Products(Projections):
        def forward(self, x):
            scores = (self.q(x) @ self.k(x).transpose(-2, -1)).relu().softmax(-1)
            return self.out(scores @ self.v(x))

    graph = octavo.capture(Products(), (torch.randn(2, 5, 8),))
    plan = octavo.plan(graph, target="openvino")
    by_op = {t.op: str(t.spec.scheme) for t in plan.quantized.values() if t.kind == "activation"}
    assert by_op["softmax"] == "uint8 per-tensor affine"
    assert by_op["transpose"] == "int8 per-tensor symmetric"


def test_nothing_between_layers_is_float_on_the_edge(graph):
    assert set(runs(graph, "edge").values()) == {"int8"}


def qparams_of(graph, batches, name: str):
    plan = octavo.plan(graph, target=name)
    return plan, octavo.calibrate(graph, plan, batches, progress=False).qparams


def test_the_edge_has_fixed_output_scales(graph, batches):
    plan, qparams = qparams_of(graph, batches, "edge")
    for op, scale, zero_point in (
        ("softmax", 1 / 256, -128),
        ("sigmoid", 1 / 256, -128),
        ("tanh", 1 / 128, 0),
    ):
        (name,) = (t.tensor for t in plan.tensors.values() if t.op == op)
        assert qparams[name].scale.item() == scale
        assert qparams[name].zero_point.item() == zero_point


def test_tensorrt_has_no_zero_points(graph, batches):
    _, qparams = qparams_of(graph, batches, "tensorrt")
    assert all(not p.zero_point.any() for p in qparams.values())


def test_arm_has_one_scale_for_a_weight(graph, batches):
    plan, qparams = qparams_of(graph, batches, "arm")
    weights = [name for name, t in plan.quantized.items() if t.kind == "weight"]
    assert weights
    assert all(qparams[name].scale.dim() == 0 for name in weights)


def test_a_rule_asks_for_what_is_float_by_default(graph):
    mapping = octavo.QConfigMapping().set_object_type("matmul", octavo.static_qconfig("x86"))
    plan = octavo.plan(graph, mapping, "x86")
    assert {t.runs for t in plan.tensors.values() if t.op == "matmul"} == {"int8"}


def test_the_reason_of_a_float_operator_says_that_a_rule_can_ask(graph):
    (softmax,) = (t for t in octavo.plan(graph).tensors.values() if t.op == "softmax")
    assert str(softmax.reason).startswith(
        "float: softmax is not quantized by default (static on x86); a rule can ask for it"
    )


def test_a_mode_that_an_operator_cannot_have_is_an_error(graph):
    mapping = octavo.QConfigMapping().set_object_type("softmax", octavo.dynamic_qconfig())
    with pytest.raises(PlanError, match="dynamic quantization, which softmax cannot have"):
        octavo.plan(graph, mapping)


def test_an_unknown_target_lists_the_known():
    with pytest.raises(PlanError, match=r"unknown target 'z80': there is 'arm', 'edge'"):
        target("z80")


def test_default_qconfigs():
    assert octavo.static_qconfig("tensorrt").activation.scheme.symmetric
    observer = octavo.Histogram()
    assert octavo.static_qconfig("x86", observer=observer).activation.observer is observer
    assert octavo.dynamic_qconfig("x86-avx2").activation.scheme.qmax == 255
    assert octavo.dynamic_qconfig(per_token=True).activation.scheme.per_token
    assert octavo.weight_only_qconfig().weight.scheme.qmin == -127
    with pytest.raises(PlanError, match="8 or 4 bits, not 3"):
        octavo.weight_only_qconfig(3)
    with pytest.raises(PlanError, match="group_size is 0"):
        octavo.weight_only_qconfig(4, group_size=0)


def test_static_weights_of_fewer_bits():
    four = octavo.static_qconfig("x86-avx2", weight_bits=4)
    assert (four.weight.scheme.dtype, four.weight.scheme.channel_axis) == ("int4", 0)
    assert four.weight.observer == octavo.MSE()  # no longer one that makes room for pairs
    assert four.activation == octavo.static_qconfig("x86-avx2").activation
    assert octavo.static_qconfig("arm", weight_bits=8) == octavo.static_qconfig("arm")
    with pytest.raises(PlanError, match=r"weight_bits is 9; .* take 2 to 8 bits"):
        octavo.static_qconfig(weight_bits=9)


class Ends(nn.Module):
    """A float function behind one layer, a sum that is returned, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        y = self.first(x)
        z = self.second(torch.nn.functional.silu(y)).relu()
        return z + y, self.third(z)


def test_a_target_of_integer_results_rounds_what_its_layers_return():
    x = torch.randn(4, 8)
    graph = octavo.capture(Ends().eval(), x)
    by_target = {name: octavo.plan(graph, target=name).tensors for name in ("x86", "executorch")}
    assert [by_target["x86"][name].spec for name in ("first", "third", "add")] == [None] * 3
    tensors = by_target["executorch"]
    assert str(tensors["first"].reason) == "add reads it in int8"
    assert str(tensors["third"].reason) == "its kernel returns integers"
    assert tensors["second"].fused_into == "relu"
    assert [tensors[name].runs for name in ("first", "silu", "relu", "add", "third")] == [
        *("int8", "float", "int8", "int8", "int8")
    ]
    q = octavo.quantize(Ends().eval(), calibration=[x], target="executorch")
    for result, name in zip(q(x), ("add", "third"), strict=True):
        steps = result / q.graph.by_name[f"{name}.quantized"].args[1]
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
