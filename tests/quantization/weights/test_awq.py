"""The maths of methods that scale inputs: `octavo.AWQ` and `octavo.SmoothQuant`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import octavo
from octavo.errors import PlanError
from octavo.graph.graph import Node
from octavo.quantization.weights import Layer
from octavo.quantization.weights.awq import output_error
from octavo.quantization.weights.moments import Largest, SecondMoments
from octavo.quantization.weights.rescaling import together

GROUPS = octavo.Scheme("uint4", group_size=16)


def linear(weight: Tensor, scheme: octavo.Scheme = GROUPS, runs: str = "weight_only") -> Layer:
    node = Node("layer", "aten.linear.default")
    return Layer(node, runs, "layer.weight", weight, scheme, "x", None, True)


def rounded(weight: Tensor, size: int) -> Tensor:
    """To four bits, affine, in groups, by the definition."""
    groups = weight.reshape(len(weight), -1, size)
    low = groups.amin(-1, keepdim=True).clamp(max=0)
    scale = (groups.amax(-1, keepdim=True).clamp(min=0) - low) / 15
    zero = (-low / scale).round()
    integers = ((groups / scale).round() + zero).clamp(0, 15)
    return ((integers - zero) * scale).reshape(weight.shape)


def made(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(256, 32) @ torch.randn(32, 32) * torch.logspace(-1, 1, 32)[torch.randperm(32)]
    return x, torch.randn(24, 32), torch.randn(8, 32)


def test_the_search_of_the_paper() -> None:
    """Equations 4 and 5, with the activations themselves, in 64 bits."""
    x, *weights = (t.double() for t in made())
    size = x.square().mean(0).sqrt()
    errors, tried = [], []
    for step in range(20):
        scales = size ** (step / 20)
        scales = scales / (scales.max() * scales.min()).sqrt()
        tried.append(scales)
        errors.append(
            sum(
                float(((rounded(w * scales, 16) / scales - w) @ x.t()).square().sum())
                for w in weights
            )
        )
    best = min(range(20), key=errors.__getitem__)
    assert 0 < best < 19
    assert errors[best] < 0.9 * errors[0]
    seen = SecondMoments().update(None, x.float())
    layers = [linear(w.float()) for w in weights]
    found = octavo.AWQ().scales(layers, seen, torch.arange(32))
    torch.testing.assert_close(found.double(), tried[best], rtol=1e-4, atol=0)
    error = sum(output_error(layer, seen.mean, found) for layer in layers)
    assert error == pytest.approx(errors[best] / len(x), rel=1e-3)


def test_channels_that_are_made_together_are_scaled_together() -> None:
    x, weight, _ = made()
    shared = torch.arange(32) % 8
    shared[5] = -1
    found = octavo.AWQ().scales([linear(weight)], SecondMoments().update(None, x), shared)
    assert float(found[5]) == 1.0
    for index in range(8):
        assert found[shared == index].unique().numel() == 1
    assert found.unique().numel() > 2
    x[:, 3] = 0
    found = octavo.AWQ().scales([linear(weight)], SecondMoments().update(None, x), shared)
    assert bool(torch.isfinite(found).all())


def test_together() -> None:
    values, shared = torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.tensor([0, 0, -1, 1])
    assert together(values, shared, "mean").tolist() == [2, 2, 1, 7]
    assert together(values, shared, "amax").tolist() == [3, 3, 1, 7]
    assert together(values, -torch.ones(4, dtype=torch.int64), "mean").tolist() == [1] * 4


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8])
def test_smoothquant_by_hand(alpha: float) -> None:
    """Equation 4, a channel at a time; behind it both sides are as large at one half."""
    x, *weights = made()
    layers = [linear(w, runs="dynamic") for w in weights]
    halves = Largest().merge(Largest().update(None, x[:100]), Largest().update(None, x[100:]))
    found = octavo.SmoothQuant(alpha).scales(layers, halves, torch.arange(32))
    for at in range(32):
        largest = max(float(w[:, at].abs().max()) for w in weights)
        scale = float(x[:, at].abs().max()) ** alpha / largest ** (1 - alpha)
        assert float(found[at]) == pytest.approx(scale, rel=1e-5)
    if alpha == 0.5:
        inputs = (x / found).abs().amax(0)
        columns = torch.stack([(w * found).abs().amax(0) for w in weights]).amax(0)
        torch.testing.assert_close(inputs, columns)


@pytest.mark.parametrize("statistic", [Largest(), SecondMoments()])
def test_what_was_measured_is_told_of_the_scaling(statistic: Largest | SecondMoments) -> None:
    x, _, _ = made()
    factors = torch.rand(32) + 0.5
    told = statistic.scaled(statistic.update(None, x), factors)
    right = statistic.update(None, x * factors)
    told, right = (x if isinstance(x, Tensor) else x.mean for x in (told, right))
    torch.testing.assert_close(told, right, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", [octavo.AWQ(), octavo.SmoothQuant()])
def test_a_graph_refuses_it(method: octavo.WeightMethod) -> None:
    with pytest.raises(PlanError, match=f"{method.name!r} scales the inputs of modules"):
        octavo.quantize(
            torch.nn.Linear(8, 8),
            calibration=[torch.rand(4, 8)],
            weights=[method],
            progress=False,
        )
