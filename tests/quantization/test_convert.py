"""The canonical QDQ graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from calling import Net
from torch import nn

import octavo
from octavo.errors import PlanError
from octavo.quantization.convert import quantize_graph
from octavo.quantization.qconfig import QConfigMapping


@pytest.fixture
def stages():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Softplus(), nn.Conv2d(4, 2, 3))
    graph = octavo.capture(model, torch.randn(2, 1, 8, 8))
    plan = octavo.plan(graph)
    qparams = octavo.calibrate(graph, plan, [torch.randn(4, 1, 8, 8)]).qparams
    return graph, plan, qparams


def test_quantize_and_dequantize_stand_around_int8_layers_only(stages):
    names = [node.name for node in quantize_graph(*stages).nodes]
    assert names == [
        "input.quantized",
        "input.dequantized",
        "0.weight.dequantized",
        "0",
        "1",
        "2",
        "2.quantized",
        "2.dequantized",
        "3.weight.dequantized",
        "3",
    ]


def test_weights_are_stored_as_integers(stages):
    graph, plan, qparams = stages
    quantized = quantize_graph(graph, plan, qparams)
    weight, scale = quantized.constants["0.weight"], quantized.constants["0.weight_scale"]
    assert weight.dtype == torch.int8
    assert weight.abs().amax((1, 2, 3)).tolist() == [127] * 4
    assert scale.shape == (4, 1, 1, 1)
    assert ((weight * scale - graph.constants["0.weight"]).abs() <= scale / 2 + 1e-7).all()
    assert quantized.constants["0.bias"].dtype == torch.float32


def test_constants_are_not_the_users(stages):
    graph, plan, qparams = stages
    quantized = quantize_graph(graph, plan, qparams)
    shared = {t.data_ptr() for t in graph.constants.values()}
    assert not shared & {t.data_ptr() for t in quantized.constants.values()}


def test_scales_are_float32_numbers(stages):
    node = quantize_graph(*stages).node("input.quantized")
    scale = node.args[1]
    assert torch.tensor(scale, dtype=torch.float32).item() == scale


def test_a_float_reader_reads_the_original_of_what_was_made_in_float():
    class TwoReaders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x):
            y = torch.sin(x)
            return self.conv(y), torch.cos(y)

    graph = octavo.capture(TwoReaders(), torch.randn(2, 1, 4, 4))
    plan = octavo.plan(graph)
    qparams = octavo.calibrate(graph, plan, [torch.randn(2, 1, 4, 4)]).qparams
    quantized = quantize_graph(graph, plan, qparams)
    assert list(quantized.node("cos").refs()) == ["sin"]
    assert next(iter(quantized.node("conv").refs())) == "sin.dequantized"


def test_a_value_that_leaves_the_model_is_dequantized():
    def features(net, x):
        y = net.a(x)
        return {"features": y, "score": net.b(y)}

    model = Net(features, a=nn.Conv2d(1, 2, 1), b=nn.Conv2d(2, 1, 1))
    graph = octavo.capture(model, torch.randn(2, 1, 4, 4))
    plan = octavo.plan(graph)
    qparams = octavo.calibrate(graph, plan, [torch.randn(2, 1, 4, 4)]).qparams
    assert quantize_graph(graph, plan, qparams).output_names() == ["a.dequantized", "b"]


def test_a_tied_weight_is_stored_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            return self.a(torch.relu(self.a(x)))

    q = octavo.quantize(Tied(), calibration=[torch.randn(8, 4)], target=octavo.host_target())
    weights = [name for name in q.graph.constants if "bias" not in name]
    assert sorted(weights) == ["a.weight", "a.weight_scale", "a.weight_zero_point"]


def test_missing_qparams_are_an_error(stages):
    graph, plan, qparams = stages
    del qparams["input"]
    with pytest.raises(PlanError, match=r"qparams are missing for \['input'\]: calibrate"):
        quantize_graph(graph, plan, qparams)


def test_the_plan_of_another_graph_is_an_error(stages):
    graph, plan, qparams = stages
    other = replace(plan, tensors={"elsewhere": plan.tensors["1"]})
    with pytest.raises(PlanError, match=r"the plan names \['elsewhere'\]"):
        quantize_graph(graph, other, qparams)


def test_a_dynamic_layer_reads_its_rounded_input():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = octavo.capture(model, torch.randn(2, 4))
    plan = octavo.plan(graph, mode="dynamic")
    assert not plan.needs_calibration
    quantized = quantize_graph(graph, plan, octavo.Calibration(graph, plan).qparams())
    ops = {node.name: node.op for node in quantized.nodes}
    assert ops["input.dynamic"] == ops["1.dynamic"] == "octavo.fake_quantize_dynamic.default"
    assert list(quantized.node("0").refs())[:2] == ["input.dynamic", "0.weight.dequantized"]


def test_weights_of_four_bits_are_packed_and_unpacked():
    graph = octavo.capture(nn.Linear(6, 3), torch.randn(2, 6))
    mapping = QConfigMapping().set_global(octavo.weight_only_qconfig(4, group_size=3))
    plan = octavo.plan(graph, mapping, mode="weight_only")
    qparams = octavo.Calibration(graph, plan).qparams()
    assert qparams["weight"].scale.shape == (3, 2)
    quantized = quantize_graph(graph, plan, qparams)
    assert quantized.constants["weight"].shape == (9,)
    assert [node.name for node in quantized.nodes] == [
        "weight.unpacked",
        "weight.dequantized",
        "linear",
    ]


def test_int8_attention_rounds_its_probabilities():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
            self.out = nn.Linear(8, 4)

        def forward(self, x):
            heads = (layer(x)[:, None] for layer in (self.q, self.k, self.v))
            attended = nn.functional.scaled_dot_product_attention(*heads, is_causal=True, scale=0.5)
            return self.out(attended[:, 0])

    x = torch.randn(4, 5, 8)
    graph = octavo.capture(Heads(), x)
    mapping = QConfigMapping().set_object_type(
        "scaled_dot_product_attention", octavo.static_qconfig("x86")
    )
    plan = octavo.plan(graph, mapping)
    quantized = quantize_graph(graph, plan, octavo.calibrate(graph, plan, [x]).qparams)
    (attention,) = (n for n in quantized.nodes if n.short_op == "attention")
    assert [name.endswith(".dequantized") for name in attention.refs()] == [True] * 3
    assert attention.args[3:] == (None, True, 0.5, False, 255)


def test_a_model_that_was_trained_in_parallel_is_converted_inside() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(32, 8)
    trained = octavo.prepare_qat(net, x)
    parallel = nn.DataParallel(trained)
    parallel(x)
    q = octavo.convert(parallel.eval())
    assert torch.equal(q(x), octavo.convert(trained)(x))


def test_the_users_parameters_keep_their_names() -> None:
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 4)
            self.weight_scale = nn.Parameter(torch.tensor([1.0, 2.0, 4.0, 8.0]))
            self.weight_zero_point = nn.Parameter(torch.tensor([3.0, 2.0, 1.0, 0.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.weight_scale - self.weight_zero_point

    net, x = nn.Sequential(Scaled()).eval(), torch.randn(8, 6)
    q = octavo.quantize(net, x, mode="weight_only", progress=False)
    assert torch.equal(q.graph.constants["0.weight_scale"], net[0].weight_scale)
    with torch.no_grad():
        assert torch.allclose(q(x), net(x), atol=0.1)
