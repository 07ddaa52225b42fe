"""`octavo.quantize`: all stages in one call, on real architectures."""

from __future__ import annotations

import warnings

import pytest
import torch
from sweeping import swept
from torch import Tensor, nn
from torchvision import models

import octavo
from octavo import MovingAverageMinMax, QConfig, QConfigMapping, QSpec, Scheme
from octavo.errors import CalibrationError, CaptureError, InputError, PlanError


def sqnr(expected: Tensor, got: Tensor) -> float:
    return float(20 * torch.log10(expected.norm() / (expected - got).norm()))


NETWORKS = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1")


@pytest.mark.parametrize("name", swept(NETWORKS, kept={"resnet18"}))
def test_torchvision_models_at_other_batch_sizes(name):
    model = getattr(models, name)(weights=None)
    data = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        model.train()(data)  # so that batch norm has seen data
    model.eval()
    q = octavo.quantize(model, data[:1], calibration=[data], target=octavo.host_target())
    assert q.summary().fallbacks == {}
    for size in (1, 3):
        x = data[:size]
        with torch.no_grad():
            assert sqnr(model(x), q(x)) > 15
        assert sqnr(q.lower("reference")(x), q(x)) > 25


def test_the_users_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    model.train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    octavo.quantize(model, calibration=[torch.randn(4, 1, 8, 8)])
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_training_on_does_not_change_the_quantized_model():
    model = nn.Sequential(nn.Linear(4, 4), nn.Softplus(), nn.LayerNorm(4))
    x = torch.randn(8, 4)
    q = octavo.quantize(model, calibration=[x], target=octavo.host_target())
    before = q(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(q(x), before)


class Several(nn.Module):
    """Two inputs, one of them by keyword, and a nested result."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x, y=None, *, scale=None):
        z = torch.relu(self.a(x))
        if y is not None:
            z = z + self.a(y)
        if scale is not None:
            z = z * scale
        return {"z": [z], "out": (self.b(z), None)}


def test_several_inputs_by_dict_batches():
    model = Several()
    batch = {"x": torch.randn(6, 4), "scale": torch.rand(6, 4), "labels": torch.zeros(6)}
    q = octavo.quantize(model, calibration=[batch], target=octavo.host_target())
    got, expected = q(batch["x"], scale=batch["scale"]), model(batch["x"], scale=batch["scale"])
    assert set(got) == {"z", "out"}
    assert got["out"][1] is None
    assert sqnr(expected["out"][0], got["out"][0]) > 20
    assert sqnr(expected["z"][0], got["z"][0]) > 20


def test_inputs_chooses_the_arguments():
    model = Several()
    data = [(torch.zeros(3), torch.randn(6, 4), torch.randn(6, 4))]
    q = octavo.quantize(
        model, calibration=data, inputs=lambda batch: batch[1:], target=octavo.host_target()
    )
    x, y = data[0][1:]
    assert sqnr(model(x, y)["out"][0], q(x, y)["out"][0]) > 20


def test_a_generator_is_used_from_its_first_batch_on():
    seen = []

    def stream():
        for index in range(3):
            seen.append(index)
            yield torch.randn(4, 4) * 10**index

    q = octavo.quantize(nn.Linear(4, 4), calibration=stream(), target=octavo.host_target())
    assert seen == [0, 1, 2]
    assert q.provenance["calibration_batches"] == 3


def test_a_single_qconfig_holds_for_all_layers():
    qconfig = QConfig(
        QSpec(Scheme("uint8", reduce_range=True), MovingAverageMinMax()),
        QSpec(Scheme("int8", symmetric=True), MovingAverageMinMax()),
    )
    q = octavo.quantize(nn.Linear(4, 4), calibration=[torch.randn(4, 4)], qconfig=qconfig)
    specs = {name: tensor.spec for name, tensor in q.plan.quantized.items()}
    assert specs == {"input": qconfig.activation, "weight": qconfig.weight}


def test_per_tensor_weights_run_in_int8():
    qconfig = QConfig(
        QSpec(Scheme("uint8", reduce_range=True), MovingAverageMinMax()),
        QSpec(Scheme("int8", symmetric=True), MovingAverageMinMax()),
    )
    x = torch.randn(32, 4)
    model = nn.Linear(4, 4)
    q = octavo.quantize(model, calibration=[x], qconfig=QConfigMapping().set_global(qconfig))
    assert q.summary().fallbacks == {}
    assert sqnr(model(x), q(x)) > 30


def test_without_data_the_error_says_what_to_pass():
    with pytest.raises(CalibrationError, match="or example_inputs, a tensor"):
        octavo.quantize(nn.Linear(4, 4))
    for example in (None, torch.randn(2, 4)):
        with pytest.raises(CalibrationError, match="pass calibration=loader"):
            octavo.quantize(nn.Linear(4, 4), example, mode="static")


def test_an_empty_loader():
    with pytest.raises(CalibrationError, match="the iterable is empty"):
        octavo.quantize(nn.Linear(4, 4), calibration=[])


def test_an_unknown_mode():
    with pytest.raises(PlanError, match="mode is 'magic'"):
        octavo.quantize(nn.Linear(4, 4), calibration=[torch.randn(4, 4)], mode="magic")


def test_a_model_that_branches_on_values_is_named():
    class Inner(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    model = nn.Sequential(nn.Linear(4, 4), Inner())
    with pytest.raises(
        CaptureError, match=r"test_quantize.py:\d+ .forward. in module '1'.*torch.where"
    ):
        octavo.quantize(model, calibration=[torch.randn(4, 4)], scope="model")


MODES = {
    "static": {"calibration": [torch.randn(8, 6)]},
    "dynamic": {"example_inputs": torch.randn(2, 6)},
    "weight_only": {"example_inputs": torch.randn(2, 6), "mode": "weight_only"},
}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_from_the_call_to_the_file(mode, tmp_path):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    q = octavo.quantize(model, target=octavo.host_target(), **MODES[mode])
    assert q.plan.mode == q.provenance["mode"] == mode
    q.save(tmp_path / "m.octavo")
    loaded = octavo.load(tmp_path / "m.octavo")
    x = torch.randn(5, 6)
    assert torch.equal(loaded(x), q(x))
    assert loaded.plan.tensors == q.plan.tensors
    with torch.no_grad():
        assert (q(x) - model(x)).norm() < model(x).norm() / 5


def test_the_mode_follows_from_data_and_qconfig():
    model, x = nn.Linear(6, 8), torch.randn(2, 6)
    made = octavo.quantize(model, x, qconfig=octavo.weight_only_qconfig(4))
    assert made.plan.mode == "weight_only"
    made = octavo.quantize(model, x, qconfig=octavo.dynamic_qconfig("x86-avx2"))
    assert made.plan.mode == "dynamic"


def test_modes_mix_by_rules():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    mapping = (
        QConfigMapping()
        .set_module_name("2", octavo.weight_only_qconfig())
        .set_module_name("4", octavo.dynamic_qconfig("x86-avx2"))
    )
    x = torch.randn(16, 6)
    q = octavo.quantize(model, calibration=[x], qconfig=mapping, target="x86-avx2")
    assert [q.plan.tensors[n].runs for n in "024"] == ["int8", "weight_only", "dynamic"]
    assert not q.lowered.fallbacks
    with torch.no_grad():
        assert (q(x) - model(x)).norm() < model(x).norm() / 10


def test_a_convolution_is_dynamic_only_where_a_rule_asks():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    x = torch.randn(2, 3, 8, 8)
    q = octavo.quantize(model, x)
    assert str(q.plan.tensors["0"].reason) == (
        "float: conv2d is not quantized by default (dynamic on x86); a rule can ask for it"
    )
    mapping = QConfigMapping().set_object_type("conv2d", octavo.dynamic_qconfig())
    asked = octavo.quantize(model, x, qconfig=mapping, mode="dynamic", target="x86-avx2")
    assert asked.plan.tensors["0"].runs == "dynamic"
    with pytest.raises(PlanError, match=r"nothing would be quantized: .*a rule can ask for it"):
        octavo.quantize(nn.Conv2d(3, 4, 3), x, mode="dynamic")


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIXELS = {"input_scale": 1 / 255, "input_mean": MEAN, "input_std": STD}


def images(*shape: int) -> tuple[Tensor, Tensor]:
    """Pixels, and the floats that torchvision's transforms make of them."""
    x = torch.randint(0, 256, shape, dtype=torch.uint8)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return x, (x / 255 - mean) / std


def small_net() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 5)).eval()


def warm_mobilenet() -> nn.Module:
    net = models.mobilenet_v2(weights=None).train()
    with torch.no_grad():
        net(images(8, 3, 64, 64)[1])  # so that batch norm has seen data
    return net.eval()


@pytest.mark.parametrize(
    ("make", "size"),
    [(small_net, 10), pytest.param(warm_mobilenet, 64, marks=pytest.mark.sweep)],
)
def test_pixels_in_predict_what_preprocessed_floats_do(make, size, tmp_path):
    model, target = make(), octavo.host_target()
    x, floats = images(8, 3, size, size)
    ordinary = octavo.quantize(model, calibration=[floats], target=target)
    q = octavo.quantize(model, calibration=[floats], target=target, **PIXELS)
    assert not q.summary().fallbacks
    with torch.no_grad():
        assert torch.equal(q(x).argmax(1), ordinary(floats).argmax(1))
        assert sqnr(ordinary(floats), q(x)) > 40
    q.save(tmp_path / "q.octavo")
    loaded = octavo.load(tmp_path / "q.octavo")
    assert torch.equal(loaded(x), q(x))
    assert loaded.provenance == q.provenance
    assert loaded.provenance["pixels"] == {"scale": 1 / 255, "mean": [*MEAN], "std": [*STD]}
    assert loaded.pixels == octavo.Pixels(1 / 255, MEAN, STD)
    assert ordinary.pixels is None
    exact = q.lower("reference")(x)
    assert sqnr(exact, ordinary.lower("reference")(floats)) > 60
    with pytest.raises(InputError, match=r"is float32\[8, 3, .* expected uint8\[N, 3, "):
        q(floats)


def test_calibration_takes_pixels_or_floats():
    x, floats = images(8, 3, 10, 10)
    model, found = small_net(), []
    for example, batches in (
        (None, [x]),
        (x[:1], [floats]),
        (floats[:1], [(x[:4], torch.zeros(4)), (floats[4:], torch.zeros(4))]),
        ({"input": x}, ({"input": part} for part in x.split(4))),
    ):
        q = octavo.quantize(model, example, calibration=batches, **PIXELS)
        nodes = [node for node in q.graph.nodes if node.op == "octavo.quantize.default"]
        found.append([node.args[1:3] for node in nodes])
    for scales in found[1:]:
        for (scale, zero_point), (first, first_zero_point) in zip(scales, found[0], strict=True):
            assert scale == pytest.approx(first, rel=1e-5)
            assert zero_point == first_zero_point


@pytest.mark.parametrize("mode", ["dynamic", "weight_only"])
def test_pixels_in_without_data(mode):
    x, floats = images(2, 3, 10, 10)
    model, target = small_net(), octavo.host_target()
    q = octavo.quantize(model, x, mode=mode, target=target, **PIXELS)
    ordinary = octavo.quantize(model, floats, mode=mode, target=target)
    assert sqnr(ordinary(floats), q(x)) > 40


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_std": 0}, "input_std is .* above zero"),
        ({"input_mean": float("nan")}, "input_mean is .* finite"),
        ({"input_mean": (0.5, 0.5)}, "input_mean has 2 numbers .* the image has 3 channels"),
    ],
)
def test_preprocessing_that_cannot_be(given, message):
    x, floats = images(2, 3, 10, 10)
    for batches in ([x], [floats]):
        with pytest.raises(InputError, match=message):
            octavo.quantize(small_net(), calibration=batches, **given)


def test_pixels_need_an_image():
    with pytest.raises(InputError, match=r"no image input.* 'input' float32\[N, 4\]; leave"):
        octavo.quantize(nn.Linear(4, 4), calibration=[torch.randn(2, 4)], input_scale=1 / 255)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({}, "octavo.dynamic_qconfig()"),
        ({"mode": "weight_only"}, "octavo.weight_only_qconfig()"),
        ({"qconfig": octavo.weight_only_qconfig(4, group_size=64)}, "octavo.weight_only_qconfig()"),
    ],
)
def test_without_data_convolutions_say_what_to_do(settings: dict, rule: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    images = torch.rand(2, 3, 8, 8)
    with pytest.raises(octavo.OctavoError) as caught:
        octavo.quantize(net, images, **settings)
    code = f'octavo.QConfigMapping().set_object_type("conv2d", {rule})'
    first = "Pass calibration=, some batches of its data, for static int8; or ask for it by a rule"
    assert f"{first}: qconfig={code}" in str(caught.value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q = octavo.quantize(net, images, qconfig=eval(code))  # noqa: S307  what the message says
    assert {n for n, t in q.plan.tensors.items() if t.on_integers} >= {"0", "2"}
    assert octavo.quantize(net, calibration=[images]).summary().int8 == 3


def test_a_rule_that_matches_nothing_is_a_warning() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    rules = octavo.QConfigMapping().set_object_type("Conv2d", None)
    message = (
        "rules that match nothing in this model: op type 'Conv2d'; its operators are conv2d, relu, "
        "and a rule for a class of modules is given the class itself, torch.nn.Conv2d"
    )
    with pytest.warns(octavo.OctavoWarning, match=message):
        q = octavo.quantize(net, calibration=[torch.rand(2, 3, 8, 8)], qconfig=rules)
    assert q.plan.unmatched == ("op type 'Conv2d'",)
    with warnings.catch_warnings():
        warnings.simplefilter("error", octavo.OctavoWarning)
        rules = octavo.QConfigMapping().set_object_type(nn.Conv2d, octavo.static_qconfig())
        octavo.quantize(
            net, calibration=[torch.rand(2, 3, 8, 8)], qconfig=rules, target=octavo.host_target()
        )


def test_dropout_that_the_float_model_keeps_on_is_told_of() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 4)).eval()
    net[1].train()
    with pytest.warns(octavo.OctavoWarning, match="'1' is in training mode, in a model"):
        q = octavo.quantize(net, torch.ones(2, 8), mode="weight_only")
    x = torch.randn(2, 8)
    assert q(x).equal(q(x))  # as in evaluation
    assert net[1].training
