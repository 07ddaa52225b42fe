"""Eager mode, from stubs to int8, and back from a state dict."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.ao.quantization as theirs
from compat.networks import FUSED, Net, Trained, decibels, percent_right, train
from torch import Tensor, nn

import octavo
import octavo.compat.quantization as ours


def fused(model: nn.Module, names: Any = ours) -> nn.Module:
    """The network between stubs, with a qconfig."""
    wrapped: nn.Module = names.QuantWrapper(names.fuse_modules(model, FUSED))
    wrapped.qconfig = names.get_default_qconfig("fbgemm")
    return wrapped


@pytest.fixture(scope="module")
def prepared(digits: Trained) -> nn.Module:
    """Seen three batches; not to be changed."""
    model = ours.prepare(fused(digits.model))
    for images, _ in list(digits.train)[:3]:
        model(images)
    return model


@pytest.fixture(scope="module")
def converted(prepared: nn.Module) -> nn.Module:
    return ours.convert(prepared)


def test_prepared_runs_in_float_and_stays_readable(digits: Trained, prepared: nn.Module) -> None:
    x = digits.images
    torch.testing.assert_close(prepared(x), digits.float_model(x), rtol=1e-4, atol=1e-4)
    assert isinstance(prepared, ours.QuantWrapper)
    assert isinstance(prepared.module.conv1, nn.Sequential)
    assert "ConvReLU2d" in str(prepared)


def test_converted_is_as_right_as_torchs(digits: Trained, converted: nn.Module) -> None:
    x, exact = digits.images, digits.float_model(digits.images)
    other = theirs.prepare(fused(digits.model, theirs))
    for images, _ in list(digits.train)[:3]:
        other(images)
    other = theirs.convert(other)
    assert decibels(exact, converted(x)) > decibels(exact, other(x)) - 1
    drop = percent_right(digits.float_model, digits.test) - percent_right(converted, digits.test)
    assert drop <= 0.5


def test_converted_prints_and_gives_its_weights(digits: Trained, converted: nn.Module) -> None:
    conv1 = converted.module.conv1
    assert str(conv1).startswith("QuantizedConvReLU2d(1, 8, kernel_size=(3, 3), stride=(1, 1)")
    assert f"scale={conv1.scale}, zero_point=0)" in str(conv1)
    assert (
        str(converted.module.fc2) == "QuantizedLinear(in_features=128, out_features=10, bias=True)"
    )
    assert converted.module.fc2.scale is None  # the last layer returns float32
    weight = conv1.weight()
    assert (weight.element_size(), weight.dtype, weight.shape) == (1, torch.qint8, (8, 1, 3, 3))
    assert weight.int_repr().abs().max() <= 127
    assert weight.q_per_channel_axis() == 0
    assert weight.q_per_channel_scales().shape == (8,)
    exact = ours.fuse_modules(digits.model, FUSED).conv1[0].weight
    assert decibels(exact, weight.dequantize()) > 35
    assert conv1.bias().shape == (8,)
    assert isinstance(converted.module.bn1, nn.Identity)
    assert str(converted.quant).startswith("Quantize(scale=0.00")
    assert str(converted.dequant) == "DeQuantize()"
    with pytest.raises(octavo.OctavoError, match="runs as a part of its model"):
        conv1(digits.images)
    with pytest.raises(octavo.OctavoError, match="would never be called"):
        conv1.register_forward_hook(print)


def test_a_state_dict_rebuilds_the_model_bit_for_bit(
    digits: Trained, converted: nn.Module, tmp_path: Path
) -> None:
    torch.save(converted.state_dict(), tmp_path / "int8.pth")
    torch.save(digits.float_model.state_dict(), tmp_path / "fp32.pth")
    assert (tmp_path / "int8.pth").stat().st_size < 0.5 * (tmp_path / "fp32.pth").stat().st_size
    rebuilt = ours.convert(ours.prepare(fused(Net().eval())))
    x = digits.images
    with pytest.raises(octavo.OctavoError, match="load the state dict of a converted model"):
        rebuilt(x)
    rebuilt.load_state_dict(torch.load(tmp_path / "int8.pth"))
    assert torch.equal(rebuilt(x), converted(x))
    assert rebuilt.module.conv1.scale == converted.module.conv1.scale
    with pytest.raises(RuntimeError, match="Missing key"):
        rebuilt.load_state_dict({})


def test_converted_can_be_copied_saved_and_lowered(
    digits: Trained, converted: nn.Module, tmp_path: Path
) -> None:
    x = digits.images
    other = copy.deepcopy(converted).to("cpu").eval()
    assert torch.equal(other(x), converted(x))
    with pytest.raises(octavo.OctavoError, match="cannot change its dtype"):
        other.half()
    native = converted.octavo_model
    assert isinstance(native, octavo.QuantizedModel)
    native.save(tmp_path / "m.octavo")
    assert torch.equal(octavo.load(tmp_path / "m.octavo")(x), converted(x))


def test_whole_models_are_neither_pickled_nor_scripted(
    converted: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(octavo.OctavoError, match=r"octavo\.load reads without the model's code"):
        torch.save(converted, tmp_path / "whole.pth")
    with pytest.raises(octavo.OctavoError, match=r"octavo\.export_onnx"):
        torch.jit.script(converted)


def test_a_copy_of_a_prepared_model_observes_on_its_own(
    digits: Trained, prepared: nn.Module
) -> None:
    other = copy.deepcopy(prepared)
    other(digits.images * 50)
    scales = [ours.convert(m).module.conv1.scale for m in (other, prepared)]
    assert scales[0] > 5 * scales[1]


def test_in_place_the_object_stays_the_same(digits: Trained) -> None:
    model = fused(digits.model)
    assert ours.prepare(model, inplace=True) is model
    model(digits.images)
    assert ours.convert(model, inplace=True) is model
    assert model.module.fc1.weight().element_size() == 1
    assert decibels(digits.float_model(digits.images), model(digits.images)) > 25


class Islands(nn.Module):
    """Integers from ``quant`` to ``dequant`` only."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.first, self.second = (nn.Linear(8, 8) for _ in range(3))
        self.quant, self.dequant = ours.QuantStub(), ours.DeQuantStub()
        self.after = nn.Linear(8, 8)
        self.functional = ours.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        x = self.quant(self.before(x))
        x = self.functional.add_relu(x, self.first(x))
        y: Tensor = self.after(self.dequant(self.second(x)))
        return y


def test_what_is_not_between_the_stubs_stays_float() -> None:
    model, x = Islands().eval(), torch.randn(32, 8)
    model.qconfig = ours.default_per_channel_qconfig
    prepared = ours.prepare(model)
    prepared(x)
    q = ours.convert(prepared)
    assert isinstance(q.before, nn.Linear)
    assert isinstance(q.after, nn.Linear)
    assert type(q.first).__name__ == type(q.second).__name__ == "QuantizedLayer"
    assert isinstance(q.functional, ours.QFunctional)
    assert q.octavo_model.plan.tensors["add"].runs == "int8"
    assert decibels(model(x), q(x)) > 30


def test_a_layer_without_a_qconfig_stays_float() -> None:
    model, x = Islands().eval(), torch.randn(32, 8)
    model.qconfig = ours.default_qconfig  # one scale for a weight
    model.first.qconfig = None
    ours.prepare(model, inplace=True)
    model(x)
    ours.convert(model, inplace=True)
    assert isinstance(model.first, nn.Linear)
    assert model.second.weight().q_scale() > 0
    assert model.second.weight().q_zero_point() == 0


def test_a_prepared_part_of_a_model() -> None:
    whole = nn.Sequential(ours.QuantWrapper(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = torch.randn(32, 8)
    exact = whole(x)
    whole[0].qconfig = ours.get_default_qconfig("onednn")
    ours.prepare(whole[0], inplace=True)
    whole(x)
    q = ours.convert(whole)
    assert decibels(exact, q(x)) > 30
    assert q[0].module.weight().element_size() == 1
    rebuilt = copy.deepcopy(q)
    rebuilt[0].module.bias().zero_()
    rebuilt.load_state_dict(q.state_dict())
    assert torch.equal(rebuilt(x), q(x))


def test_quantize_runs_all_steps(digits: Trained) -> None:
    q = ours.quantize(fused(digits.model), lambda m, x: m(x), [digits.images])
    assert decibels(digits.float_model(digits.images), q(digits.images)) > 25
    wrapped = ours.QuantWrapper(digits.model)
    wrapped.qconfig = ours.get_default_qat_qconfig("fbgemm")
    trained = ours.quantize_qat(wrapped, lambda m, data: train(m, data, 1, 1e-3), [digits.test])
    assert percent_right(trained, digits.test) > 90


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ours.prepare(Net()), r"set model.qconfig = get_default_qconfig\('x86'\)"),
        (lambda: ours.prepare(with_qconfig(Net())), "no QuantStub.*QuantWrapper"),
        (lambda: ours.prepare(Net(), allow_list=[nn.Linear]), "does not take the argument allow"),
        (lambda: ours.prepare_qat(Net(), {nn.Linear: 1}), "does not take the argument mapping"),
        (lambda: ours.convert(Net()), "was not prepared: call prepare or prepare_qat"),
        (lambda: ours.convert(Net(), is_reference=True), "argument is_reference"),
        (lambda: ours.prepare(training())(torch.rand(2, 1, 14, 14)), "'module.bn1' is in training"),
        (lambda: ours.prepare(ours.prepare(fused(Net().eval()))), "prepared already"),
    ],
)
def test_errors_name_the_way_out(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(octavo.OctavoError, match=message):
        call()


def training() -> nn.Module:
    return with_qconfig(ours.QuantWrapper(Net().train()))


def with_qconfig(model: nn.Module) -> nn.Module:
    model.qconfig = ours.get_default_qconfig("x86")
    return model
