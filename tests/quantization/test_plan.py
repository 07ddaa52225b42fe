"""Which tensors are quantized, how, and the reason that the plan gives."""

from __future__ import annotations

import json

import pytest
import torch
from calling import Net
from torch import Tensor, nn

import octavo
from octavo import MinMax, MovingAverageMinMax, Plan, QConfig, QConfigMapping, QSpec, Scheme
from octavo.errors import PlanError
from octavo.graph.graph import Graph


class Residual(nn.Module):
    """Convolution, block with a shortcut that has a convolution of its own, pooling, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(8, 8, 1)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        y = self.conv2(torch.relu(self.conv1(x)))
        y = torch.relu(y + self.shortcut(x))
        return self.fc(torch.flatten(self.average(y), 1))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return octavo.capture(Residual(), torch.randn(2, 3, 16, 16))


def of(plan: Plan, name: str) -> tuple[str, str, str]:
    tensor = plan.tensors[name]
    return tensor.runs, str(tensor.spec or "float"), str(tensor.reason)


def test_defaults_of_x86(graph):
    plan = octavo.plan(graph)
    activation, weight = "uint8 per-tensor affine", "int8 per-channel symmetric"
    assert of(plan, "x") == ("", activation, "stem.0 reads it in int8")
    assert of(plan, "stem.0.weight") == ("int8", weight, "weight of an int8 layer")
    assert of(plan, "stem.0") == ("int8", "float", "fused into stem.2")
    assert of(plan, "stem.2") == ("int8", activation, "pool reads it in int8")
    assert of(plan, "pool") == ("int8", activation, "shares the scale of stem.2: max_pool2d")
    assert of(plan, "flatten") == ("int8", activation, "shares the scale of average: flatten")
    assert of(plan, "fc") == ("int8", "float", "float: leaves the model")
    assert all(tensor.runs == "int8" for tensor in plan.tensors.values() if tensor.kind != "input")


def test_the_later_convolution_takes_the_addition_and_the_relu(graph):
    plan = octavo.plan(graph)
    assert plan.tensors["shortcut"].fused_into == "relu_1"
    assert plan.tensors["add"].fused_into == "relu_1"
    assert plan.tensors["conv2"].fused_into is None
    assert plan.tensors["conv2"].spec is not None
    assert plan.tensors["shortcut"].spec is None
    kernels = {
        name: plan.kernel_of(name) for name in ("shortcut", "add", "relu_1", "conv2", "none")
    }
    assert kernels == {
        **dict.fromkeys(("shortcut", "add", "relu_1"), "relu_1"),
        **{"conv2": "conv2", "none": "none"},
    }


def test_x86_avx2_keeps_pairs_of_weights_small():
    class Depthwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand = nn.Conv2d(3, 8, 1)
            self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
            self.project = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.project(self.depthwise(self.expand(x)))

    graph = octavo.capture(Depthwise(), torch.randn(2, 3, 8, 8))
    plan = octavo.plan(graph, target="x86-avx2")
    weights = {n: t.spec.observer.name for n, t in plan.quantized.items() if t.kind == "weight"}
    assert weights == {
        "expand.weight": "pair_sum",
        "depthwise.weight": "min_max",  # sums no pairs
        "project.weight": "pair_sum",
    }
    assert {t.spec.scheme.qmax for t in plan.quantized.values() if t.kind != "weight"} == {255}
    found = octavo.calibrate(graph, plan, [torch.randn(2, 3, 8, 8)], progress=False)
    integers = octavo.convert(graph, plan, found.qparams).graph.constants["project.weight"]
    for side in (integers.int(), -integers.int()):
        assert side.flatten(1).clamp(min=0).topk(2).values.sum(1).max() <= 128


def test_float_islands_are_not_quantized_inside():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softplus(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1))
    plan = octavo.plan(octavo.capture(model, torch.randn(2, 3, 8, 8)))
    assert of(plan, "0") == ("int8", "float", "float: nothing int8 reads it")
    assert str(plan.tensors["1"].reason) == "float: softplus has no quantized form"
    assert plan.tensors["2"].runs == "float"
    assert str(plan.tensors["2"].reason) == "float: its input is float; 3 reads it in int8"
    assert plan.tensors["2"].spec is not None


def test_an_addition_before_the_output_is_not_quantized():
    parts = {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 4, 1)}
    model = Net(lambda net, x: net.a(x) + net.b(x), **parts)
    plan = octavo.plan(octavo.capture(model, torch.randn(2, 3, 8, 8)))
    assert of(plan, "add") == ("float", "float", "float: nothing after it runs in int8")
    assert plan.tensors["a"].spec is None
    assert plan.tensors["a"].runs == "int8"


def test_concatenated_tensors_share_one_scale():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = (nn.Conv2d(3, 3, 1) for _ in range(3))
            self.last = nn.Conv2d(6, 2, 1)

        def forward(self, x):
            return self.last(torch.cat([self.a(x), torch.relu(self.b(x))], 1))

    plan = octavo.plan(octavo.capture(Branches(), torch.randn(2, 3, 8, 8)))
    assert plan.tensors["a"].shares is None
    assert plan.tensors["relu"].shares == "a"
    assert plan.tensors["cat"].shares == "a"


def test_sizes_do_not_join_the_tensors_that_they_came_from():
    class Reshaping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.fc = nn.Linear(64, 3)

        def forward(self, x):
            n = x.shape[0]
            y = self.b(self.a(x).reshape(n, 4, 2, 8).relu())
            return self.fc(y.reshape(n, -1))

    plan = octavo.plan(octavo.capture(Reshaping(), torch.randn(2, 4, 4, 4)))
    shares = {name: t.shares for name, t in plan.quantized.items() if t.shares}
    assert shares == {"reshape": "a", "reshape_1": "b"}


def qconfig(observer: MinMax | MovingAverageMinMax) -> QConfig:
    weight = QSpec(Scheme("int8", symmetric=True, channel_axis=0), MinMax())
    return QConfig(QSpec(Scheme("uint8"), observer), weight)


def test_module_name_beats_regex_beats_operator_beats_global(graph):
    mapping = (
        QConfigMapping()
        .set_module_name("conv1", qconfig(MovingAverageMinMax(0.4)))
        .set_module_name_regex("conv.", qconfig(MovingAverageMinMax(0.3)))
        .set_object_type(nn.Conv2d, qconfig(MovingAverageMinMax(0.2)))
        .set_global(qconfig(MovingAverageMinMax(0.1)))
    )
    plan = octavo.plan(graph, mapping)
    specs = {name: t.spec.observer for name, t in plan.quantized.items() if t.kind != "weight"}
    assert specs["conv2"] == MovingAverageMinMax(0.3)
    assert specs["average"] == MovingAverageMinMax(0.1)
    assert mapping.rule_for(graph.node("conv1")).kind == "module name"
    assert mapping.rule_for(graph.node("shortcut")).kind == "op type"


@pytest.mark.parametrize(
    "mapping",
    [
        QConfigMapping().set_module_name("conv1", None),
        QConfigMapping().set_module_name_regex("conv1|none", None),
    ],
)
def test_none_keeps_a_layer_in_float(graph, mapping):
    plan = octavo.plan(graph, mapping)
    assert plan.tensors["conv1"].runs == "float"
    assert str(plan.tensors["conv1"].reason).startswith("float: the rule module name")
    assert "conv1.weight" not in plan.quantized
    assert plan.tensors["conv2"].runs == "int8"


def test_a_rule_for_a_module_holds_for_all_inside_it(graph):
    plan = octavo.plan(graph, QConfigMapping().set_module_name("stem", None))
    assert {plan.tensors[name].runs for name in ("stem.0", "stem.2")} == {"float"}


@pytest.mark.parametrize(
    "kind", ["linear", "aten.linear.default", nn.Linear, torch.nn.functional.linear]
)
def test_operator_types_by_name_class_and_function(graph, kind):
    plan = octavo.plan(graph, QConfigMapping().set_object_type(kind, None))
    assert plan.tensors["fc"].runs == "float"
    assert plan.tensors["conv2"].runs == "int8"


def test_a_rule_that_matches_nothing_is_reported(graph):
    mapping = QConfigMapping().set_object_type("lstm", None).set_module_name_regex("b.*x", None)
    assert octavo.plan(graph, mapping).unmatched == ("op type 'lstm'", "module name regex 'b.*x'")


def test_an_unknown_module_name_is_an_error_with_a_suggestion(graph):
    with pytest.raises(PlanError, match=r"'conv3'.*did you mean .*'conv[12]'"):
        octavo.plan(graph, QConfigMapping().set_module_name("conv3", None))


def test_nothing_quantized_is_an_error(graph):
    with pytest.raises(PlanError, match=r"nothing would be quantized.*the rule global"):
        octavo.plan(graph, QConfigMapping().set_global(None))


class Rotated(nn.Module):
    """Its layer computes in bfloat16, and its table of angles in float32, as language models do."""

    def __init__(self):
        super().__init__()
        self.layer, self.angles = nn.Linear(4, 4).bfloat16(), nn.Parameter(torch.rand(4))

    def forward(self, x):
        return self.layer((x * self.angles.cos()).bfloat16())


def test_layers_in_halves_are_named_beside_tables_in_float32():
    graph = octavo.capture(Rotated(), torch.rand(2, 4))
    with pytest.raises(PlanError, match=r"compute in torch\.bfloat16; quantize model\.float\(\)"):
        octavo.plan(graph, mode="weight_only")


def test_an_unknown_target_is_an_error(graph):
    with pytest.raises(PlanError, match="unknown target 'z80'"):
        octavo.plan(graph, target="z80")


def test_json_round_trip(graph):
    mapping = QConfigMapping().set_object_type("lstm", None)
    plan = octavo.plan(graph, mapping, "x86-avx2")
    assert Plan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["target"] == "x86-avx2"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"target": "x86", "tensors": [{}], "unmatched": []}']
)
def test_json_of_something_else_is_an_error(text):
    with pytest.raises(PlanError, match="not the JSON of a plan"):
        Plan.from_json(text)


def test_prints_every_tensor_with_its_reason(graph):
    text = str(octavo.plan(graph))
    assert text.splitlines()[0] == "Plan for x86, static; what stays float is float32"
    assert any(
        line.split()[0] == "pool" and "shares the scale" in line for line in text.splitlines()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_in_other_floats_is_refused(dtype):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).to(dtype)
    graph = octavo.capture(net, torch.randn(2, 4).to(dtype))
    with pytest.raises(
        PlanError, match=f"layers of the model compute in {dtype}; quantize model.float"
    ):
        octavo.plan(graph)
