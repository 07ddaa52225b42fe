"""Norms in the torch runtime: on integers, and with the rounding of their floats."""

from __future__ import annotations

import pytest
import torch
from decibel import sqnr_db
from torch import nn

import octavo
from octavo.numerics.native import library
from octavo.runtimes.torch import normalization
from octavo.runtimes.torch.int8 import lower_to

TARGET = octavo.host_target()


class Block(nn.Module):
    """Two linear layers, and a norm between them of what `before` makes of the first."""

    def __init__(self, norm, before) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 8)
        self.norm, self.before = norm, before

    def forward(self, x):
        read = self.norm(self.before(self.first(x), x))
        return read, self.second(read)


BEFORE = {
    "one term": lambda y, x: y,
    "a sum": lambda y, x: y + x,
    "a sum that broadcasts": lambda y, x: y + x[:1],
}


@pytest.fixture
def calls(monkeypatch):
    """The addends of the kernel's calls."""
    if library.obstacle():
        pytest.skip(library.obstacle())
    seen = []

    def spying(x, addend, *rest):
        seen.append(addend)
        return normalize(x, addend, *rest)

    normalize = normalization.normalize
    monkeypatch.setattr(normalization, "normalize", spying)
    return seen


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("norm", [nn.LayerNorm(24), nn.RMSNorm(24)])
def test_a_norm_rounds_its_floats_and_adds_what_stands_before_it(calls, norm, before):
    torch.manual_seed(0)
    x = torch.randn(6, 24)
    q = octavo.quantize(
        Block(norm, BEFORE[before]).eval(), calibration=[x], target=TARGET, progress=False
    )
    calls.clear()
    for rows in (6, 1, 9):
        y = torch.randn(rows, 24)
        for want, have in zip(q.lower("reference")(y), q(y), strict=True):
            assert sqnr_db(want, have) > 60
    assert len(calls) == 3
    assert [addend is not None for addend in calls] == {
        "one term": [False] * 3,
        "a sum": [True] * 3,
        "a sum that broadcasts": [False, True, False],
    }[before]


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
    assert not q.lowered.fallbacks
    assert q.lowered.kernels["1"] == f"octavo.{name}"
    assert sqnr_db(q.lower("reference")(x), q(x)) > 50


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
