"""Bias correction: the mean of a layer's output is what it was before its weights were rounded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import octavo
from octavo.numerics.affine import fake_quantize
from octavo.quantization.weights import bias_correction, correct_biases


def test_golden_values_by_group():
    error = torch.tensor([[0.5, -0.25], [1.0, 1.0]])
    mean = torch.tensor([2.0, 4.0, 3.0, -1.0])
    assert bias_correction(error, mean, groups=2).tolist() == [0.0, 2.0]
    kernel = torch.full((1, 1, 3, 3), 0.1)
    assert torch.allclose(bias_correction(kernel, torch.tensor([2.0])), torch.tensor([1.8]))


LAYERS = {
    "linear": (nn.Linear(6, 4), (6,)),
    "linear of 3-D": (nn.Linear(6, 4, bias=False), (5, 6)),
    "conv2d": (nn.Conv2d(6, 4, 3), (6, 8, 8)),
    "grouped": (nn.Conv2d(6, 4, 1, groups=2, bias=False), (6, 8, 8)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), (6, 8, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_mean_output_is_that_of_the_float_weights(name):
    layer, shape = LAYERS[name]
    # Constant over positions, so that a kernel's every tap has the mean of its channel exactly.
    x = torch.randn(16, *(shape if layer.__class__ is nn.Linear else (shape[0], 1, 1))) + 1.0
    x = x.expand(16, *shape).contiguous()
    weight = octavo.QSpec(octavo.Scheme("int8", symmetric=True, reduce_range=True), octavo.MinMax())
    activation = octavo.quantization.targets.target("x86").qconfig.activation
    mapping = octavo.QConfigMapping().set_global(octavo.QConfig(activation, weight))
    graph = octavo.capture(layer, x)
    plan = octavo.plan(graph, mapping)
    found = octavo.calibrate(graph, plan, x.split(4), progress=False)
    corrected = correct_biases(graph, found.qparams, found.input_means)

    def mean_with_rounded_weight(of):
        node = of.nodes[0]
        rounded = fake_quantize(of.constants["weight"], found.qparams["weight"])
        bias = of.constants[node.args[2].name] if len(node.args) > 2 and node.args[2] else None
        with torch.no_grad():
            if isinstance(layer, nn.Linear):
                out = nn.functional.linear(x, rounded, bias)
            else:
                out = nn.functional.conv2d(x, rounded, bias, groups=layer.groups)
        return channel_means(out)

    def channel_means(out):
        axis = -1 if isinstance(layer, nn.Linear) else 1
        return out.movedim(axis, -1).flatten(0, -2).mean(0)

    with torch.no_grad():
        expected = channel_means(layer(x))
    before = (mean_with_rounded_weight(graph) - expected).abs().max()
    after = (mean_with_rounded_weight(corrected) - expected).abs().max()
    assert after < 1e-5 < before


def test_a_bias_that_two_layers_share_stays_as_it_is():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.bias = self.a.bias

        def forward(self, x):
            return self.b(self.a(x).relu())

    model = Tied()
    before = model.a.bias.detach().clone()
    graph = octavo.capture(model, torch.randn(2, 4))
    found = octavo.calibrate(graph, octavo.plan(graph), [torch.rand(8, 4)], progress=False)
    corrected = correct_biases(graph, found.qparams, found.input_means)
    biases = [node.args[2].name for node in corrected.nodes if node.short_op == "linear"]
    assert len(set(biases)) == 2
    assert torch.equal(model.a.bias, before)


def test_quantize_corrects_unless_told_not_to():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    batches = [torch.rand(32, 8) for _ in range(4)]
    x = torch.cat(batches)
    with torch.no_grad():
        expected = model(x).mean(0)
    plain, corrected = (
        octavo.quantize(
            model, calibration=batches, target=octavo.host_target(), bias_correction=on
        ).lower("reference")
        for on in (False, True)
    )
    off, on = ((q(x).mean(0) - expected).norm() for q in (plain, corrected))
    assert on < off


@pytest.mark.parametrize("mode", ["dynamic", "weight_only"])
def test_layers_that_are_not_static_are_corrected_where_there_is_data_and_a_bias(mode):
    layer, x = nn.Linear(64, 4), torch.rand(64, 64) + 1.0
    weight = octavo.weight_only_qconfig(4).weight
    activation = octavo.dynamic_qconfig("x86").activation if mode == "dynamic" else None
    settings = {"qconfig": octavo.QConfig(activation, weight), "target": "x86", "scope": "model"}

    def quantized(layer, **how):
        return octavo.quantize(layer, x, mode=mode, **settings, progress=False, **how)

    def shift(q):
        with torch.no_grad():
            return float((q.lower("reference")(x) - layer(x)).mean(0).norm())

    data = [x[:32], x[32:]]
    corrected = quantized(layer, calibration=data)
    assert corrected.provenance["weights"] == "bias_correction"
    others = [quantized(layer), quantized(layer, calibration=data, bias_correction=False)]
    others += [quantized(nn.Linear(64, 4, bias=False), calibration=data)]
    assert all("weights" not in q.provenance for q in others)
    assert shift(corrected) < {"dynamic": 0.005, "weight_only": 1e-5}[mode]
    assert shift(others[0]) == shift(others[1]) > 0.05
