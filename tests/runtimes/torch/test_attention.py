"""Attention in the torch runtime: by Octavo's own kernel, and without it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from decibel import sqnr_db
from torch import nn

import octavo
from octavo.numerics.native import library
from octavo.runtimes.torch import attention
from octavo.runtimes.torch.int8 import lower_to

TARGET = octavo.host_target()


class Attention(nn.Module):
    """Two heads of 16 channels on a text, with what stands around them in a transformer."""

    def __init__(self, **settings) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.settings = settings

    def forward(self, x, mask=None):
        q, k, v = (f(x).unflatten(-1, (2, 16)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **self.settings)
        return self.out(y.transpose(1, 2).flatten(2))


def quantized(model, x, **mask):
    rules = octavo.QConfigMapping().set_object_type(
        "scaled_dot_product_attention", octavo.static_qconfig(TARGET)
    )
    given = {"x": x, **mask}
    return octavo.quantize(
        model, given, calibration=[given], qconfig=rules, target=TARGET, progress=False
    )


def kernel_of(lowered):
    found = [k for n, k in lowered.kernels.items() if n == "scaled_dot_product_attention"]
    return found[0] if found else lowered.fallbacks["scaled_dot_product_attention"]


@pytest.mark.parametrize("with_kernels", [True, False])
@pytest.mark.parametrize("settings", [{}, {"is_causal": True}, {"scale": 0.1}])
def test_attention_is_the_oracles(monkeypatch, settings, with_kernels):
    if not with_kernels:
        monkeypatch.setattr(library, "library", lambda: None)
    elif library.obstacle():
        pytest.skip(library.obstacle())
    torch.manual_seed(0)
    x = torch.randn(2, 12, 32)
    q = quantized(Attention(**settings).eval(), x)
    assert kernel_of(q.lowered) == ("native.attention" if with_kernels else library.MISSING)
    for length in (1, 12, 40):
        y = torch.randn(2, length, 32)
        assert sqnr_db(q.lower("reference")(y), q(y)) > 45


def test_masks_of_both_kinds_are_read():
    if library.obstacle():
        pytest.skip(library.obstacle())
    torch.manual_seed(0)
    x, seen = torch.randn(2, 12, 32), torch.rand(2, 1, 12, 12) < 0.7
    for mask in (seen, torch.randn(2, 1, 12, 12)):
        q = quantized(Attention().eval(), x, mask=mask)
        assert kernel_of(q.lowered) == "native.attention"
        assert sqnr_db(q.lower("reference")(x, mask), q(x, mask)) > 45


def test_without_programs_it_is_a_call_of_its_own():
    if library.obstacle():
        pytest.skip(library.obstacle())
    torch.manual_seed(0)
    x = torch.randn(1, 12, 32)
    q = quantized(Attention().eval(), x)
    alone = lower_to(q.graph, "python", programs=False)
    assert kernel_of(alone) == "octavo.attention"
    assert sqnr_db(q.lower("reference")(x), alone.run(x)[0]) > 45


def test_more_keys_than_the_kernel_takes_are_computed_in_float(monkeypatch):
    if library.obstacle():
        pytest.skip(library.obstacle())
    torch.manual_seed(0)
    x = torch.randn(1, 12, 32)
    q = quantized(Attention().eval(), x)
    expected = q(x)
    monkeypatch.setattr(attention, "MOST_SOURCES", 11)
    monkeypatch.setattr(attention, "attention_of_integers", None)
    assert sqnr_db(expected, lower_to(q.graph, "python", programs=False).run(x)[0]) > 45


def test_a_package_says_that_it_has_no_kernel():
    q = quantized(Attention().eval(), torch.randn(1, 12, 32))
    assert "cannot call Octavo's own kernels" in kernel_of(lower_to(q.graph, "package"))
