"""Norms of integers in the torch runtime: in programs, and as calls of their own."""

from __future__ import annotations

import pytest
import torch
from decibel import sqnr_db
from torch import nn

import octavo
from octavo.numerics.native import library
from octavo.runtimes.torch.int8 import lower_to

TARGET = octavo.host_target()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("layer_norm", nn.LayerNorm(24)),
        ("rms_norm", nn.RMSNorm(24)),
        ("softmax", nn.Softmax(-1)),
    ],
)
def test_on_integers_it_is_one_kernel(name, layer):
    if library.obstacle():
        pytest.skip(library.obstacle())
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 24), layer, nn.Linear(24, 8)).eval()
    rules = octavo.QConfigMapping().set_object_type(name, octavo.static_qconfig(TARGET))
    x = torch.randn(6, 24)
    q = octavo.quantize(model, calibration=[x], qconfig=rules, target=TARGET, progress=False)
    for programs, kernel in ((True, f"native.{name}"), (False, f"octavo.{name}")):
        lowered = lower_to(q.graph, "python", programs=programs)
        assert not lowered.fallbacks
        assert lowered.kernels["1"] == kernel
        assert sqnr_db(q.lower("reference")(x), lowered.run(x)[0]) > 50


@pytest.mark.parametrize(
    ("layer", "caller", "reason"),
    [
        (nn.Softmax(0), "python", "over an axis that is not the last"),
        (nn.Softmax(-1), "package", "a compiled library cannot call"),
    ],
)
def test_what_the_kernel_does_not_take_is_told(layer, caller, reason):
    if library.obstacle():
        pytest.skip(library.obstacle())
    model = nn.Sequential(nn.Linear(24, 24), layer, nn.Linear(24, 8)).eval()
    rules = octavo.QConfigMapping().set_object_type("softmax", octavo.static_qconfig(TARGET))
    q = octavo.quantize(
        model, calibration=[torch.randn(6, 24)], qconfig=rules, target=TARGET, progress=False
    )
    assert reason in lower_to(q.graph, caller).fallbacks["1"]
