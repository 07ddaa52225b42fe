"""Training: the optimizer holds the very parameters that are trained."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from compat.networks import FUSED, Net, Trained, decibels, percent_right, train
from torch import Tensor, nn

import octavo
import octavo.compat.quantization as ours
from octavo.compat.quantization import quantize_fx


@pytest.fixture
def model(digits: Trained) -> Any:
    """Prepared, not called; batch norms are trained."""
    wrapped = ours.QuantWrapper(ours.fuse_modules_qat(digits.model.train(), FUSED))
    wrapped.qconfig = ours.get_default_qat_qconfig("fbgemm")
    return ours.prepare_qat(wrapped, inplace=True)


def test_an_optimizer_made_before_the_first_call_trains(digits: Trained, model: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    conv, norm = model.module.conv1[0], model.module.conv1[1]
    before, mean = conv.weight.detach().clone(), norm.running_mean.clone()
    model(digits.images).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
    assert not torch.equal(conv.weight, before)
    assert not torch.equal(norm.running_mean, mean)
    assert {id(p) for p in model.octavo_model.parameters()} == {id(p) for p in model.parameters()}


def _assert_alike(model: nn.Module, q: nn.Module, images: Tensor) -> None:
    """But for integers of one step more or less."""
    assert decibels(model(images), q(images)) > 40


def test_trained_and_converted_agree(digits: Trained, model: Any) -> None:
    train(model, digits.test, epochs=1, lr=1e-3)
    model.eval()
    q = ours.convert(model)
    _assert_alike(model, q, digits.images)
    assert percent_right(q, digits.test) > 95
    assert str(q.module.conv1).startswith("QuantizedConvReLU2d(1, 8")
    rebuilt = ours.QuantWrapper(ours.fuse_modules_qat(Net(), FUSED))
    rebuilt.qconfig = ours.get_default_qat_qconfig("fbgemm")
    rebuilt = ours.convert(ours.prepare_qat(rebuilt))
    with pytest.raises(octavo.OctavoError, match="without calibration"):
        rebuilt(digits.images)
    rebuilt.load_state_dict(q.state_dict())
    assert torch.equal(rebuilt(digits.images), q(digits.images))


def test_switches_may_come_before_the_first_call(digits: Trained, model: Any) -> None:
    model.apply(ours.disable_fake_quant)
    exact = copy.deepcopy(digits.float_model).train()(digits.images)
    torch.testing.assert_close(model(digits.images), exact, rtol=1e-3, atol=1e-3)
    model.apply(ours.enable_fake_quant)
    assert decibels(exact, model(digits.images)) < 60
    model.apply(ours.disable_observer)
    ranges = [m.high.clone() for m in model.octavo_model.modules() if hasattr(m, "high")]
    model(digits.images * 100)
    assert ranges == [m.high for m in model.octavo_model.modules() if hasattr(m, "high")]


def test_before_training_it_evaluates_in_float(digits: Trained, model: Any) -> None:
    model.eval()
    torch.testing.assert_close(
        model(digits.images), digits.float_model(digits.images), rtol=1e-3, atol=1e-3
    )
    waiting = ours.convert(model)
    with pytest.raises(octavo.OctavoError, match="is not known"):
        waiting(digits.images)


def test_fx_trains_a_copy(digits: Trained) -> None:
    before = copy.deepcopy(digits.float_model.state_dict())
    qconfigs = ours.get_default_qat_qconfig_mapping("x86")
    model = quantize_fx.prepare_qat_fx(digits.float_model, qconfigs, digits.images)
    train(model, digits.test, epochs=1, lr=1e-3)
    model.eval()
    q = quantize_fx.convert_fx(model)
    _assert_alike(model, q, digits.images)
    for name, tensor in digits.float_model.state_dict().items():
        assert torch.equal(tensor, before[name])
    moved = copy.deepcopy(model).to("cpu").train()
    moved(digits.images).sum().backward()
    assert moved.conv1.weight.grad is not None
    assert model.conv1.weight.grad is not moved.conv1.weight.grad


def test_a_computed_weight_is_refused() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    qconfigs = ours.get_default_qat_qconfig_mapping("x86")
    with pytest.raises(octavo.OctavoError, match=r"octavo\.prepare_qat"):
        quantize_fx.prepare_qat_fx(nn.Sequential(layer), qconfigs, torch.rand(2, 4))
