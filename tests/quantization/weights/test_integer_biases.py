"""Biases that are whole multiples of the step of their layer's sums."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import octavo
from octavo.quantization.weights import (
    Layer,
    Rounded,
    WeightMethod,
    integer_bias,
    round_weights,
)


def test_golden_values_round_half_to_even() -> None:
    bias = torch.tensor([0.3, 0.75, 1.25, -0.3])
    assert integer_bias(bias, torch.tensor(0.5)).tolist() == [0.5, 1.0, 1.0, -0.5]
    steps = torch.tensor([0.5, 0.25, 1.0, 1e-30])
    assert integer_bias(bias, steps).tolist() == pytest.approx([0.5, 0.75, 1.0, -0.3])


class Net(nn.Module):
    """Four layers, two of them with one bias between them, the last behind a float operator."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.c, self.d = nn.Conv2d(8, 8, 3, bias=False), nn.Linear(8, 4)
        self.b.bias = self.a.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.c(self.b(self.a(x).relu())).relu().mean((2, 3))
        return self.d(torch.sin(y))


def stages(weight: octavo.QSpec | None = None):
    x = torch.rand(8, 3, 8, 8)
    default = octavo.quantization.targets.target("x86").qconfig
    rule = default if weight is None else octavo.QConfig(default.activation, weight)
    mapping = octavo.QConfigMapping().set_global(rule).set_module_name("d", None)
    graph = octavo.capture(Net().eval(), x)
    plan = octavo.plan(graph, mapping)
    return graph, plan, octavo.calibrate(graph, plan, [x], progress=False).qparams


def bias_of(graph, layer: str) -> torch.Tensor:
    node = next(node for node in graph.nodes if node.name == layer)
    return graph.constants[node.args[2].name]


def test_each_layer_gets_multiples_of_its_own_steps() -> None:
    graph, plan, qparams = stages()
    found = round_weights(graph, plan, qparams).graph
    layers = {node.name: node for node in found.nodes}
    biases = {name: bias_of(found, name) for name in ("a", "b", "d")}
    for name in ("a", "b"):
        given, weight = (qparams[ref.name].scale for ref in layers[name].args[:2])
        counts = biases[name].double() / (given * weight).double()
        assert (counts - counts.round()).abs().max() < 1e-3
        moved = (biases[name] - bias_of(graph, name)).abs()
        assert bool((moved <= 0.51 * given * weight).all())
        assert moved.max() > 0
    assert not torch.equal(biases["a"], biases["b"])  # one bias, two steps
    assert torch.equal(biases["d"], bias_of(graph, "d"))  # a float layer's
    assert len(layers["c"].args) < 3 or layers["c"].args[2] is None


@pytest.mark.parametrize(
    "scheme",
    [
        octavo.Scheme("uint8", channel_axis=0),
        octavo.Scheme("int4", symmetric=True, channel_axis=0),
        octavo.Scheme("int2", symmetric=True),
    ],
    ids=str,
)
def test_so_are_those_beside_all_other_weights(scheme: octavo.Scheme) -> None:
    """ONNX Runtime makes integers of them whatever the weights are."""
    graph, plan, qparams = stages(octavo.QSpec(scheme, octavo.MinMax()))
    found = round_weights(graph, plan, qparams).graph
    step = qparams["x"].scale * qparams["a.weight"].scale
    counts = bias_of(found, "a").double() / step.double()
    assert (counts - counts.round()).abs().max() < 1e-2
    assert (bias_of(graph, "a") / step).frac().abs().max() > 0.1


def test_groups_of_weights_keep_float_biases() -> None:
    layer = nn.Linear(8, 4).eval()
    x = torch.rand(4, 8)
    grouped = octavo.Scheme("int8", symmetric=True, group_size=4)
    rule = octavo.QConfig(
        octavo.quantization.targets.target("x86").qconfig.activation,
        octavo.QSpec(grouped, octavo.MinMax()),
    )
    graph = octavo.capture(layer, x)
    plan = octavo.plan(graph, octavo.QConfigMapping().set_global(rule))
    qparams = octavo.calibrate(graph, plan, [x], progress=False).qparams
    assert round_weights(graph, plan, qparams).graph.constants["bias"] is graph.constants["bias"]


def test_those_of_grouped_transposed_convolutions_count_in_steps_of_their_groups() -> None:
    x = torch.rand(4, 6, 5, 5)
    graph = octavo.capture(nn.Sequential(nn.ConvTranspose2d(6, 4, 3, groups=2), nn.ReLU()), x)
    plan = octavo.plan(graph)
    qparams = octavo.calibrate(graph, plan, [x], progress=False).qparams
    weight = qparams["0.weight"].scale
    assert weight.shape == (2,)
    step = qparams["input"].scale * torch.cat([weight, weight])
    found = round_weights(graph, plan, qparams).graph.constants["0.bias"]
    counts = found.double() / step.double()
    assert (counts - counts.round()).abs().max() < 1e-2
    assert ((found - graph.constants["0.bias"]).abs() <= 0.51 * step).all()
    assert not torch.equal(found, graph.constants["0.bias"])


def test_convert_does_it() -> None:
    graph, plan, qparams = stages()
    q = octavo.convert(graph, plan, qparams)
    rounded = round_weights(graph, plan, qparams).graph
    assert torch.equal(bias_of(q.graph, "a"), bias_of(rounded, "a"))
    assert not torch.equal(bias_of(q.graph, "a"), bias_of(graph, "a"))


def dead(scheme: octavo.Scheme):
    """A layer whose second channel has a bias of 3 and no weights; inputs up to 255 / 256."""
    layer = nn.Sequential(nn.ReLU(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        layer[1].weight.fill_(1.0)
        layer[1].weight[1] = 0.0
        layer[1].bias.copy_(torch.tensor([0.5, 3.0, -3.0]))
    rule = octavo.QConfig(
        octavo.QSpec(octavo.Scheme("uint8"), octavo.FixedRange(0.0, 255 / 256)),
        octavo.QSpec(scheme, octavo.MinMax()),
    )
    x = torch.rand(2, 4)
    graph = octavo.capture(layer, x)
    plan = octavo.plan(graph, octavo.QConfigMapping().set_global(rule))
    return graph, plan, octavo.calibrate(graph, plan, [x], progress=False).qparams


def test_scales_are_raised_to_what_an_int32_bias_needs() -> None:
    scheme = octavo.Scheme("int8", symmetric=True, channel_axis=0, narrow_range=True)
    graph, plan, qparams = dead(scheme)
    name = next(node for node in graph.nodes if node.short_op == "linear").args[1].name
    found = round_weights(graph, plan, qparams).qparams
    assert found.keys() == qparams.keys()
    assert found[name].scale.tolist() == pytest.approx([1 / 127, 3 * 256 / 2**30, 1 / 127])
    assert torch.equal(found[name].scale[::2], qparams[name].scale[::2])
    exponent = octavo.Scheme("int8", symmetric=True, channel_axis=0, power_of_two=True)
    found = round_weights(*dead(exponent)).qparams
    assert found[name].scale[1].item() == 2**-20  # the next above 3 * 2**-22
    graph, plan, qparams = stages()
    rounded = round_weights(graph, plan, qparams)
    assert rounded.qparams == qparams  # all biases fit: the same objects


class OneLess(WeightMethod):
    name = "one less"

    def round(self, layer: Layer, now: Rounded, seen: None) -> Rounded:
        return replace(now, integers=now.integers - 1)


def test_integers_of_a_method_stay_but_where_the_scale_is_raised() -> None:
    scheme = octavo.Scheme("int8", symmetric=True, channel_axis=0, narrow_range=True)
    graph, plan, qparams = dead(scheme)
    (integers,) = round_weights(graph, plan, qparams, [OneLess()]).integers.values()
    assert integers.dtype == torch.int8
    assert integers.tolist() == [[126] * 4, [0] * 4, [126] * 4]
