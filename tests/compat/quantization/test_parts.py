"""What would be in vain in a prepared or converted model is refused."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import octavo
import octavo.compat.quantization as ours
from octavo.compat.quantization import quantize_fx
from octavo.errors import OctavoWarning

REGISTER = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)


def wrapped(training: bool = False) -> Any:
    """A convolution, a batch norm, a dropout and a linear layer between stubs."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Flatten()
    )
    net.append(nn.Linear(64, 3))
    model = ours.QuantWrapper(net).train(training)
    model.qconfig = (ours.get_default_qat_qconfig if training else ours.get_default_qconfig)("x86")
    return model


@pytest.fixture
def x() -> Tensor:
    return torch.randn(8, 1, 6, 6)


@pytest.fixture
def prepared(x: Tensor) -> Any:
    model = ours.prepare(wrapped())
    model(x)
    return model


@pytest.fixture
def trained(x: Tensor) -> Any:
    model = ours.prepare_qat(wrapped(training=True))
    model(x)
    return model


def doubled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 2 * output


def test_hooks_on_parts_are_refused_where_they_would_not_be_called(
    prepared: Any, trained: Any
) -> None:
    q = ours.convert(prepared)
    models = (q, copy.deepcopy(q), trained, copy.deepcopy(trained), ours.convert(trained))
    for model, register in itertools.product(models, REGISTER):
        for part in (model.module[0], model.module[5], model.module):
            with pytest.raises(octavo.OctavoError, match=r"numeric_suite and octavo\.layer_errors"):
                getattr(part, register)(lambda *args: None)
        getattr(model, register)(lambda *args: None)  # the model itself is called
        getattr(copy.deepcopy(model.module[2]), register)(lambda *args: None)  # and a part alone


def test_hooks_from_before_are_refused_where_they_would_stop(prepared: Any) -> None:
    seen: list[int] = []
    handle = prepared.module[2].register_forward_hook(lambda *args: seen.append(1))
    prepared(torch.randn(2, 1, 6, 6))
    assert seen == [1]
    with pytest.raises(octavo.OctavoError, match=r"hook on 'module\.2' \(ReLU\).*handle\.remove"):
        ours.convert(prepared)
    handle.remove()
    ours.convert(prepared)
    model = wrapped(training=True)
    model.module[0].register_full_backward_hook(lambda *args: None)
    with pytest.raises(octavo.OctavoError, match=r"hook on 'module\.0' \(Conv2d\)"):
        ours.prepare_qat(model)


def test_hooks_see_no_values_of_a_capture_and_the_roots_are_called_once(x: Tensor) -> None:
    model, seen = wrapped(), []
    model.register_forward_hook(doubled)
    handle = model.module[0].register_forward_hook(lambda m, a, output: seen.append(output))
    ready = ours.prepare(model)
    ready.module[5].register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    torch.testing.assert_close(ready(x), model(x))
    assert [type(value) for value in seen] == [Tensor, Tensor, Tensor]
    handle.remove()
    for part in (ready.module[0], ready.module[5]):
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    torch.testing.assert_close(ours.convert(ready)(x), model(x), rtol=0.05, atol=0.1)


def test_torchs_own_hooks_are_captured(x: Tensor) -> None:
    model = wrapped()
    prune.l1_unstructured(model.module[5], "weight", 0.5)
    ours.prepare(model, inplace=True)
    exact = model(x)
    q = ours.convert(model, inplace=True)
    with pytest.raises(octavo.OctavoError, match="was computed from other tensors"):
        q.module[5].weight()
    torch.testing.assert_close(q(x), exact, rtol=0.05, atol=0.05)


def test_modules_cannot_be_replaced(prepared: Any, trained: Any) -> None:
    changes: dict[str, Callable[[Any], Any]] = {
        "'module' of the QuantWrapper cannot": lambda m: setattr(m, "module", nn.Flatten()),
        "'5' of 'module' .* cannot be repl": lambda m: setattr(m.module, "5", nn.Linear(64, 9)),
        "'6' of 'module'": lambda m: m.module.append(nn.ReLU()),
    }
    for model in (prepared, trained, ours.convert(prepared)):
        for message, change in changes.items():
            with pytest.raises(octavo.OctavoError, match=message):
                change(model)
    changes["'6' of 'module'"](ours.prepare(wrapped()))  # not captured yet


def test_weights_that_change_after_the_capture(prepared: Any, trained: Any, x: Tensor) -> None:
    with pytest.raises(octavo.OctavoError, match=r"'weight' of 'module\.5' \(Linear\)"):
        trained.module[5].weight = nn.Parameter(torch.zeros(3, 64))
    prepared.module[5].weight.data.mul_(2)
    with pytest.raises(octavo.OctavoError, match="weights have changed since"):
        ours.convert(prepared)
    float_model, other = wrapped().module, wrapped().module
    other[1].running_mean.fill_(0.5)
    mapping = ours.get_default_qconfig_mapping("x86")
    ready = quantize_fx.prepare_fx(float_model, mapping, x)
    ready.load_state_dict(other.state_dict())
    ready(x)
    torch.testing.assert_close(quantize_fx.convert_fx(ready)(x), other(x), rtol=0.05, atol=0.05)


def test_what_is_set_on_a_prepared_model_is_the_models(x: Tensor) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.by, self.calls = wrapped(), 1.0, 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            y: Tensor = self.inner(x) * self.by
            return y

    model = Scaled().eval()
    model.qconfig = ours.get_default_qconfig("x86")
    ready = ours.prepare(model)
    ready.by = 3.0
    ready(x)
    assert ready.calls >= 1
    q = ours.convert(ready)
    assert q.by == 3.0
    torch.testing.assert_close(q(x), 3 * model(x), rtol=0.05, atol=0.1)


def test_a_qconfig_that_changes_after_prepare(prepared: Any) -> None:
    prepared.module[5].qconfig = None
    with pytest.raises(octavo.OctavoError, match=r"'module\.5' has changed since prepare"):
        ours.convert(prepared)


def test_parts_in_evaluation_mode(trained: Any, x: Tensor) -> None:
    norm = trained.module[1].eval()
    before = norm.running_mean.clone()
    trained(x + 3)
    assert torch.equal(norm.running_mean, before)
    norm.train()
    trained(x + 3)
    assert not torch.equal(norm.running_mean, before)
    trained.module[3].eval()
    with pytest.raises(octavo.OctavoError, match=r"dropout 'module\.3' is in evaluation mode"):
        trained(x)


def test_some_norms_in_evaluation_mode(x: Tensor) -> None:
    model = wrapped(training=True)
    model.module.insert(2, nn.BatchNorm2d(4))
    model = ours.prepare_qat(model.train())
    model.module[2].eval()
    with pytest.raises(octavo.OctavoError, match=r"model\.freeze_bn_stats\(\)"):
        model(x)


def test_norms_that_train_in_a_later_call(prepared: Any, x: Tensor) -> None:
    prepared.module[1].train()
    with pytest.raises(octavo.OctavoError, match=r"'module\.1' is in training mode"):
        prepared(x)


def test_training_mode_of_a_converted_model(prepared: Any, x: Tensor) -> None:
    q = ours.convert(prepared)
    with pytest.warns(OctavoWarning, match="has no training mode"):
        q.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(q(x), q.eval()(x))


def test_convert_shares_no_tensor_with_the_prepared_model(prepared: Any, x: Tensor) -> None:
    q = ours.convert(prepared)
    exact, rounded = prepared(x), q(x)
    held = {t.data_ptr() for t in prepared.state_dict().values()}
    assert not held & {t.data_ptr() for t in q.state_dict().values()}
    with torch.no_grad():
        for tensor in q.state_dict().values():
            tensor.zero_()
    assert torch.equal(prepared(x), exact)
    assert torch.equal(ours.convert(prepared)(x), rounded)
