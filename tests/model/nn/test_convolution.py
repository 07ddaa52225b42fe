"""Convolutions of `octavo.nn`: against captured ones, and against torch's for each setting."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import octavo
from octavo.errors import InputError, OctavoWarning, PlanError
from octavo.flow.modules import quantized_modules
from octavo.flow.settings import Settings

LAYERS: list[nn.Module] = [
    nn.Conv1d(4, 6, 3, padding="same", dilation=2),
    nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    nn.Conv2d(4, 8, (3, 5), padding=(1, 2), padding_mode="circular", groups=2),
    nn.Conv2d(4, 4, 3, groups=4, padding="valid"),
    nn.Conv3d(4, 6, 2, padding_mode="replicate", padding=1),
    nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1),
    nn.ConvTranspose2d(4, 6, 3, groups=2),
    nn.ConvTranspose3d(4, 6, 2),
]
QCONFIGS = {
    "dynamic": octavo.dynamic_qconfig(octavo.host_target()),
    "int8": octavo.weight_only_qconfig(),
    "uint4": octavo.weight_only_qconfig(4, symmetric=False),
}


def image(layer: nn.Module, size: int = 9) -> torch.Tensor:
    return torch.randn(2, 4, *[size] * (layer.get_parameter("weight").dim() - 2))


@pytest.mark.parametrize("how", QCONFIGS)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_they_compute_what_torchs_do(layer: nn.Module, how: str) -> None:
    torch.manual_seed(0)
    q = octavo.nn.from_float(layer, QCONFIGS[how], octavo.host_target())
    bound = 0.2 if how == "uint4" else 0.03
    for x in (image(layer), image(layer, 6), image(layer)[0]):
        exact = layer(x)
        assert q(x).shape == exact.shape
        assert float((q(x) - exact).norm() / exact.norm()) < bound
    described = json.loads(json.dumps(q.describe()))
    again = octavo.nn.from_description(described, q.state_dict())
    assert torch.equal(again(image(layer) * 0 + 1), q(image(layer) * 0 + 1))


@pytest.mark.parametrize("how", ["dynamic", "int8"])
def test_they_compute_what_captured_ones_do(how: str) -> None:
    torch.manual_seed(0)
    layer, qconfig = nn.Conv2d(4, 6, 3, padding=1), QCONFIGS[how]
    x = image(layer)
    rule = octavo.QConfigMapping().set_object_type("conv2d", qconfig)
    mode = "dynamic" if how == "dynamic" else "weight_only"
    target = octavo.host_target()
    graph = octavo.quantize(layer, x, mode=mode, qconfig=rule, target=target, progress=False)
    module = octavo.nn.from_float(layer, qconfig, target)
    torch.testing.assert_close(module(x), graph(x), rtol=1e-4, atol=1e-5)


def test_bfloat16_and_the_size_of_a_transposed_one() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2).bfloat16()
    q, x = octavo.nn.from_float(layer, QCONFIGS["int8"]), image(layer).bfloat16()
    assert q(x, [20, 20]).shape == layer(x, [20, 20]).shape == (2, 6, 20, 20)
    assert q(x).dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3)], ids=str)
def test_an_image_with_a_nan_spoils_no_other(layer: nn.Module, bad: float) -> None:
    torch.manual_seed(0)
    q = octavo.nn.from_float(layer, QCONFIGS["dynamic"], octavo.host_target())
    x = image(layer)[[0, 1, 0]]
    x[1] *= 100
    x[1, 0, 0, 0] = bad
    assert not bool(q(x)[1].isfinite().all())
    torch.testing.assert_close(q(x)[[0, 2]], q(x[[0, 2]]))


def test_they_are_quantized_where_a_rule_asks_for_it() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4)).eval()
    replaced = quantized_modules(model, Settings())
    assert set(replaced.modules) == {"3"}
    assert "conv2d is not quantized by default" in replaced.left["0"]
    rule = octavo.QConfigMapping().set_object_type(nn.Conv2d, octavo.weight_only_qconfig())
    replaced = quantized_modules(model, Settings(mapping=rule))
    assert {path: module.runs for path, module in replaced.modules.items()} == {  # type: ignore[union-attr]
        "0": "weight_only",
        "3": "dynamic",
    }
    x = torch.randn(2, 4, 3, 3)
    assert float((replaced.model(x) - model(x)).norm() / model(x).norm()) < 0.05


def test_what_cannot_be() -> None:
    q = octavo.nn.from_float(nn.Conv2d(4, 6, 3), octavo.weight_only_qconfig())
    with pytest.raises(
        InputError, match=r"takes floats \[batch, 4, N, N\], not float32\[2, 3, 9, 9\]"
    ):
        q(torch.rand(2, 3, 9, 9))
    with pytest.raises(InputError, match="Kernel size"):
        q(torch.rand(2, 4, 2, 2))
    with pytest.raises(PlanError, match="group_size 4 does not divide"):
        octavo.nn.from_float(nn.Conv2d(4, 6, 3), octavo.weight_only_qconfig(4, group_size=4))


def test_it_is_told_where_no_kernel_is() -> None:
    q = octavo.nn.from_float(nn.Conv2d(4, 6, 3), octavo.weight_only_qconfig())
    with pytest.warns(OctavoWarning, match="a QuantizedConv2d runs in float on the torch runtime"):
        q(torch.rand(2, 4, 9, 9))
