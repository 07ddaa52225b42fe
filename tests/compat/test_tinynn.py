from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.compat import quantization as tq
from octavo.compat.tinynn import DynamicQuantizer, PostQuantizer, QATQuantizer, TFLiteConverter
from octavo.errors import OctavoError, PlanError

X86 = {"backend": "fbgemm", "per_tensor": False}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.fc = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x).flatten(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(x)[0])


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8)


def plan_with(config: dict[str, Any], x: torch.Tensor, model: nn.Module | None = None) -> Any:
    quantizer = PostQuantizer(model or Net(), x, config=config)
    ready = quantizer.quantize()
    ready(x)
    return quantizer.convert(ready).octavo_model.plan


def test_post_training_quantization_is_near_and_leaves_the_model_alone(x: torch.Tensor) -> None:
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    quantizer = PostQuantizer(net, x, config=X86)
    ready = quantizer.quantize()
    assert not ready.training
    for _ in range(3):
        ready(x)
    int8 = quantizer.convert(ready)
    expected = net.eval()(x)
    assert (int8(x) - expected).norm() < 0.02 * expected.norm()
    assert int8.octavo_model.summary().to_dict()["target"] == "x86-avx2"
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_training_moves_the_parameters_of_an_optimizer(x: torch.Tensor) -> None:
    quantizer = QATQuantizer(Net(), x, config=X86)
    ready = quantizer.quantize()
    assert ready.training
    optimizer = torch.optim.SGD(ready.parameters(), 0.1)
    before = ready.fc.weight.detach().clone()
    ready(x).square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, ready.fc.weight)
    int8 = quantizer.convert(ready.eval())
    assert torch.allclose(int8(x), ready(x), atol=0.05)


def test_dynamic_quantization_needs_no_data() -> None:
    x = torch.randn(5, 2, 4)
    net = Recurrent().eval()
    quantizer = DynamicQuantizer(net, x, config={"asymmetric": False})
    int8 = quantizer.quantize()
    assert quantizer.convert(int8) is int8
    assert torch.allclose(int8(x), net(x), atol=0.02)
    assert type(int8.fc) is not nn.Linear
    assert type(net.fc) is nn.Linear


@pytest.mark.parametrize("given", [{"asymmetric": True}, {"per_tensor": False}])
def test_dynamic_quantization_has_one_scheme(given: dict[str, bool]) -> None:
    with pytest.raises(PlanError, match=r"octavo\.dynamic_qconfig"):
        DynamicQuantizer(Recurrent(), torch.randn(5, 2, 4), config=given)


@pytest.mark.parametrize(
    ("config", "target", "activation", "weight"),
    [
        ({}, "arm", "uint8 per-tensor affine", "int8 per-tensor symmetric"),
        ({"per_tensor": False}, "arm", "uint8 per-tensor affine", "int8 per-channel symmetric"),
        ({"asymmetric": False}, "arm", "uint8 per-tensor symmetric", "int8 per-tensor symmetric"),
        (X86, "x86-avx2", "uint8 per-tensor affine", "int8 per-channel symmetric"),
        (
            {"backend": "onnx", "asymmetric": False},
            "onnxruntime",
            "int8 per-tensor symmetric",
            "int8 per-tensor symmetric",
        ),
        (
            {"backend": "tensorrt", "asymmetric": False, "per_tensor": False},
            "tensorrt",
            "int8 per-tensor symmetric",
            "int8 per-channel symmetric",
        ),
    ],
)
def test_schemes_of_a_config(
    config: dict[str, Any], target: str, activation: str, weight: str, x: torch.Tensor
) -> None:
    plan = plan_with(config, x)
    assert plan.target == target
    assert plan.tensors["x"].values == activation
    assert plan.tensors["fc.weight"].values == weight


@pytest.mark.parametrize(
    ("algorithm", "observer"), [("l2", octavo.Histogram), ("kl", octavo.Entropy)]
)
def test_algorithms(algorithm: str, observer: type, x: torch.Tensor) -> None:
    spec = plan_with({"algorithm": algorithm}, x).tensors["x"].spec
    assert isinstance(spec.observer, observer)


def test_layers_are_left_out_by_name_class_and_function(x: torch.Tensor) -> None:
    def floats(config: dict[str, Any]) -> set[str]:
        plan = plan_with(config, x)
        layers = ("features.0", "features.2", "fc")
        return {name for name in layers if plan.tensors[name].runs == "float"}

    assert floats({}) == set()
    assert floats({"layerwise_config": {"features_0": False}}) == {"features.0"}
    assert floats({"layerwise_config": {"default": False, "fc": True}}) == {
        "features.0",
        "features.2",
    }
    assert floats({"quantize_op_action": {nn.Linear: "disable"}}) == {"fc"}


def test_a_function_gives_layers_their_own_qconfig(x: torch.Tensor) -> None:
    own = tq.QConfig(tq.HistogramObserver, tq.default_per_channel_weight_observer)
    plan = plan_with(
        {"override_qconfig_func": lambda name, module: own if name == "fc" else None}, x
    )
    assert plan.tensors["fc.weight"].values == "int8 per-channel symmetric"
    assert plan.tensors["features.0.weight"].values == "int8 per-tensor symmetric"


@pytest.mark.parametrize(
    ("config", "runs"),
    [
        ({}, "float"),
        ({"dynamic_lstm_quant": True}, "dynamic"),
        ({"quantize_op_action": {nn.LSTM: "rewrite"}}, "int8"),
    ],
)
def test_an_lstm_is_float_unless_the_config_says_otherwise(
    config: dict[str, Any], runs: str
) -> None:
    plan = plan_with(config, torch.randn(5, 2, 4), Recurrent())
    assert next(t.runs for t in plan.tensors.values() if t.op == "lstm") == runs
    assert plan.tensors["fc"].runs == "int8"


def test_the_work_dir_holds_the_plan_and_nothing_is_read_from_it(
    x: torch.Tensor, tmp_path: Path
) -> None:
    (tmp_path / "net_q.py").write_text("raise SystemExit")
    config = {"rewrite_graph": True, "force_overwrite": False, "legacy_fq": True}
    ready = PostQuantizer(Net(), x, str(tmp_path), config).quantize()
    plan = octavo.Plan.from_json((tmp_path / "net_q_plan.json").read_text())
    assert plan == ready._octavo.calibration.plan
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net_q.py", "net_q_plan.json"]


def test_arguments_as_a_list_or_a_dict_and_a_parallel_model(x: torch.Tensor) -> None:
    for dummy in ([x], {"x": x}):
        quantizer = PostQuantizer(nn.DataParallel(Net()), dummy)
        ready = quantizer.quantize()
        assert ready(x).shape == (2, 5)


@pytest.mark.parametrize(
    ("config", "way_out"),
    [
        ({"asymetric": True}, "unknown key 'asymetric'"),
        ({"backend": "mkldnn"}, "target="),
        ({"backend": "tensorrt"}, "'asymmetric': False"),
        ({"algorithm": "mse"}, "octavo.observers"),
        ({"inplace": True}, "what quantize() returns"),
        ({"fuse_only": True}, "octavo.capture"),
        ({"rounding_mode": "tflite"}, "half to even"),
        ({"is_input_quantized": [True]}, "input_scale"),
        ({"quantized_input_stats": [(0.0, 1.0)]}, "FixedRange"),
        ({"set_quantizable_op_stats": True}, "target='edge'"),
        ({"disable_requantization_for_cat": False}, "shares its scale"),
        ({"quantize_op_action": {nn.LSTM: "drop"}}, "one of"),
    ],
)
def test_what_octavo_does_not_share(config: dict[str, Any], way_out: str) -> None:
    with pytest.raises(PlanError) as error:
        PostQuantizer(Net(), torch.randn(1, 3, 8, 8), config=config)
    assert way_out in str(error.value)


def test_unknown_layers_other_backends_and_other_methods(x: torch.Tensor) -> None:
    with pytest.raises(PlanError, match="layerwise_config names 'head'"):
        PostQuantizer(Net(), x, config={"layerwise_config": {"head": False}}).quantize()
    quantizer = QATQuantizer(Net(), x)
    with pytest.raises(PlanError, match=r"octavo\.export_onnx"):
        quantizer.convert(quantizer.quantize(), backend="onnx")
    with pytest.raises(OctavoError, match=r"octavo\.layer_errors"):
        quantizer.error_analysis(None, x)
    assert quantizer.backend == "qnnpack"
    assert not hasattr(quantizer, "nothing")
    with pytest.raises(OctavoError, match="bfloat16"):
        from octavo.compat.tinynn import BF16Quantizer  # noqa: F401


@pytest.mark.parametrize(("config", "last"), [(None, "int8"), (X86, "float32")])
@pytest.mark.parametrize("quantizer", [PostQuantizer, QATQuantizer])
def test_a_tflite_file(quantizer, config, last: str, tmp_path: Path, x: torch.Tensor) -> None:
    pytest.importorskip("ai_edge_litert")
    made = quantizer(Net(), x, config=config)
    ready = made.quantize()
    ready(x)
    written = TFLiteConverter(made.convert(ready), x, tmp_path / "m.tflite").convert()
    assert (tmp_path / "m.tflite").stat().st_size == written.flash_bytes
    assert written.operators["CONV_2D int8"] == 2
    assert written.operators[f"FULLY_CONNECTED {last}"] == 1
    assert written.agreement["xnnpack"].agrees


def test_what_cannot_be_a_tflite_file(tmp_path: Path, x: torch.Tensor) -> None:
    with pytest.raises(PlanError, match=r"got a Net in float: give it what quantizer\.convert"):
        TFLiteConverter(Net(), x, tmp_path / "m.tflite")
    with pytest.raises(PlanError, match="does not take input_transpose=False"):
        TFLiteConverter(Net(), x, tmp_path / "m.tflite", input_transpose=False)
