"""Layers that read the same integers are one product, with the results that they had."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import octavo
from octavo.runtimes.torch.siblings import join_siblings

TARGET = octavo.host_target()


class Heads(nn.Module):
    """Three layers of one input, one without bias, before attention or before arithmetic."""

    def __init__(self, attends: bool = True) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 8), nn.Linear(16, 8, bias=False), nn.Linear(16, 12)
        self.out, self.attends = nn.Linear(12, 4), attends

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        if not self.attends:
            return self.out(torch.cat([q + k, v[..., :4]], -1))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v))


def quantized(mode: str, attends: bool = True) -> tuple[octavo.QuantizedModel, torch.Tensor]:
    model, x = Heads(attends).eval(), torch.randn(4, 6, 16)
    floats = octavo.QConfigMapping()
    if attends:
        floats.set_object_type("scaled_dot_product_attention", None)
    return octavo.quantize(model, calibration=[x], mode=mode, qconfig=floats, target=TARGET), x


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_layers_are_joined_and_compute_the_same(mode):
    q, x = quantized(mode)
    graph, joined = join_siblings(q.graph)
    assert set(joined) == {"q", "k", "v"}
    (whole,) = set(joined.values())
    assert graph.constants[f"{whole}.weight"].shape == (28, 16)
    assert sum(node.short_op == "linear" for node in graph.nodes) == 2
    assert {"q", "k", "v"} <= set(q.lowered.kernels)
    assert not q.summary().fallbacks
    exact = q.lower("reference")(x)
    assert (q(x) - exact).norm() < exact.norm() / 500


def test_layers_with_integers_as_results_stay_apart():
    q, _ = quantized("static", attends=False)
    _, joined = join_siblings(q.graph)
    assert not joined


def test_weight_only_layers_stay_apart():
    q, _ = quantized("weight_only")
    _, joined = join_siblings(q.graph)
    assert not joined
