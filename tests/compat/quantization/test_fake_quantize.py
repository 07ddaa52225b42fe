"""`FakeQuantize` rounds as torch.ao's did, and its switches are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.ao.quantization as theirs

import octavo.compat.quantization as ours

# The fused kernel of torch.ao finds other symmetric scales than its observer tells.
DEFAULTS = [
    "default_fake_quant",
    "default_weight_fake_quant",
    "default_per_channel_weight_fake_quant",
    "default_fused_act_fake_quant",
    "default_fixed_qparams_range_0to1_fake_quant",
]


@pytest.mark.parametrize("name", DEFAULTS)
def test_values_and_gradients_are_those_of_torch(name: str) -> None:
    mine, other = getattr(ours, name)(), getattr(theirs, name)()
    for _ in range(3):
        x = torch.randn(4, 6)
        one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
        got, wanted = mine(one), other(two)
        torch.testing.assert_close(got, wanted)
        got.sum().backward()
        wanted.sum().backward()
        torch.testing.assert_close(one.grad, two.grad)
    torch.testing.assert_close(mine.scale, other.scale)
    assert mine.zero_point.tolist() == other.zero_point.tolist()


def test_switches() -> None:
    rounding = ours.FakeQuantize(quant_min=0, quant_max=255)
    model = torch.nn.Sequential(rounding)
    x = torch.tensor([0.0, 0.3, 1.0])
    before = model(x)
    assert not torch.equal(before, x)
    model.apply(ours.disable_fake_quant)
    assert torch.equal(model(x), x)
    model.apply(ours.enable_fake_quant)
    model.apply(ours.disable_observer)
    scale = rounding.scale.clone()
    model(x * 100)
    assert torch.equal(rounding.scale, scale)
    model.apply(ours.enable_observer)
    model(x * 100)
    assert rounding.scale > scale
    state = model.state_dict()
    assert {"0.scale", "0.zero_point", "0.observer_enabled"} <= set(state)


def test_with_args_and_what_it_prints() -> None:
    made: Any = ours.FakeQuantize.with_args(observer=ours.MinMaxObserver, dtype=torch.qint8)()
    assert isinstance(made.activation_post_process, ours.MinMaxObserver)
    assert "quant_min=-128, quant_max=127, dtype=torch.qint8" in repr(made)
