"""Float and int8, layer by layer, in the structure that torch.ao gave."""

from __future__ import annotations

import pytest
import torch
import torch.ao.ns._numeric_suite as theirs
import torch.ao.quantization as torch_ao
from torch import nn

import octavo
import octavo.compat.quantization as ours
from compat.networks import FUSED, Trained, decibels
from octavo.compat import numeric_suite as ns

LAYERS = ["module.conv1", "module.conv2", "module.fc1", "module.fc2"]


@pytest.fixture(scope="module")
def models(digits: Trained) -> tuple[nn.Module, nn.Module]:
    fused = ours.QuantWrapper(ours.fuse_modules(digits.model, FUSED)).eval()
    fused.qconfig = ours.get_default_qconfig("fbgemm")
    prepared = ours.prepare(fused)
    prepared(digits.images)
    return fused, ours.convert(prepared)


def test_weights(digits: Trained, models: tuple[nn.Module, nn.Module]) -> None:
    found = ns.compare_weights(models[0].state_dict(), models[1].state_dict())
    assert list(found) == [f"{name}.weight" for name in LAYERS]
    for pair in found.values():
        assert decibels(pair["float"], pair["quantized"].dequantize()) > 35


def test_weights_whose_channels_are_the_second_axis() -> None:
    model = ours.QuantWrapper(nn.ConvTranspose2d(6, 6, 3)).eval()
    model.qconfig = ours.get_default_qconfig("fbgemm")
    prepared, x = ours.prepare(model), torch.rand(2, 6, 8, 8)
    prepared(x)
    (pair,) = ns.compare_weights(model.state_dict(), ours.convert(prepared).state_dict()).values()
    assert decibels(pair["float"], pair["quantized"]) > 35


def test_weights_of_layers_that_run_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.LSTM(4, 8))
    dynamic = ours.quantize_dynamic(model)
    found = ns.compare_weights(model.state_dict(), dynamic.state_dict())
    assert list(found) == ["0.weight", "1.weight_ih_l0", "1.weight_hh_l0"]
    for pair in found.values():
        assert decibels(pair["float"], pair["quantized"]) > 35


def test_outputs_have_the_structure_of_torchs(
    digits: Trained, models: tuple[nn.Module, nn.Module]
) -> None:
    fused = torch_ao.QuantWrapper(torch_ao.fuse_modules(digits.model, FUSED)).eval()
    fused.qconfig = torch_ao.get_default_qconfig("fbgemm")
    prepared = torch_ao.prepare(fused)
    prepared(digits.images)
    other = theirs.compare_model_outputs(fused, torch_ao.convert(prepared), digits.images)
    found = ns.compare_model_outputs(*models, digits.images)
    assert set(found) == {f"{name}.stats" for name in LAYERS} <= set(other)
    for name, pair in found.items():
        ((exact,), (rounded,)) = pair["float"], pair["quantized"]
        wanted, theirs_rounded = other[name]["float"][-1], other[name]["quantized"][-1]
        # The network's relu is in place: what torch kept of fc1 was overwritten by it.
        values = (wanted, exact, rounded, theirs_rounded.dequantize())
        wanted, exact, rounded, theirs_rounded = (value.relu() for value in values)
        assert decibels(wanted, exact) > 80
        assert decibels(exact, rounded) > decibels(exact, theirs_rounded) - 2
    only = ns.compare_model_outputs(*models, digits.images, allow_list={nn.Linear})
    assert set(only) == {"module.fc1.stats", "module.fc2.stats"}


def test_shadow_modules_see_what_the_quantized_ones_see(
    digits: Trained, models: tuple[nn.Module, nn.Module]
) -> None:
    kinds = [nn.Linear, type(models[0].module.conv1)]
    found = ns.compare_model_stub(*models, kinds, digits.images)
    assert set(found) == {f"{name}.stats" for name in LAYERS}
    whole = ns.compare_model_outputs(*models, digits.images)
    for pair in found.values():
        assert decibels(pair["float"][0], pair["quantized"][0]) > 25
    first, last = ("module.conv1.stats", "module.fc2.stats")
    alone = [decibels(*(found[n][k][0] for k in ("float", "quantized"))) for n in (first, last)]
    summed = [decibels(*(whole[n][k][0] for k in ("float", "quantized"))) for n in (first, last)]
    assert alone[1] > summed[1]  # without the errors of the layers before


def test_models_of_other_kinds_are_refused(digits: Trained) -> None:
    with pytest.raises(octavo.OctavoError, match=r"octavo\.layer_errors"):
        ns.compare_model_outputs(digits.model, digits.model, digits.images)
    with pytest.raises(octavo.OctavoError, match="argument logger_cls"):
        ns.compare_model_outputs(digits.model, digits.model, digits.images, logger_cls=object)
