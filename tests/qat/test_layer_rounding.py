"""Weight and bias of a layer, rounded as they are deployed: values by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import octavo
from octavo import FixedRange, MinMax, QSpec, Scheme
from octavo.qat import LearnedFakeQuantize, ObservedFakeQuantize, WeightFakeQuantize
from octavo.qat.fake_quantize import FakeQuantize
from octavo.qat.layer_rounding import LayerRounding

SCHEME = Scheme("int8", symmetric=True, channel_axis=0, narrow_range=True)
# Steps of the sums: 1 / 127 / 256 in the first channel.
WEIGHT = torch.tensor([[1.0, -0.5], [2.0**-24, 0.0]])
BIAS = torch.tensor([0.50001, 3.0])


def given() -> ObservedFakeQuantize:
    """Of an input with the scale 1 / 256."""
    return ObservedFakeQuantize("x", QSpec(Scheme("uint8"), FixedRange(0.0, 255 / 256)))


def weights(learned: bool = False) -> FakeQuantize:
    observed = WeightFakeQuantize("w", QSpec(SCHEME, MinMax()))
    return LearnedFakeQuantize("w", observed.qparams_of(WEIGHT)) if learned else observed


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_a_bias_is_a_whole_number_of_steps_and_fits_into_int32(
    learned: bool, training: bool
) -> None:
    module = weights(learned).train(training)
    weight, bias = LayerRounding(module, given())(WEIGHT, BIAS)
    # 0.50001 is 16256.3 steps, of which 16256 are 0.5. Of the second channel a weight scale of
    # 2**-24 / 127 would make 3.0 more steps than an int32 counts: the scale is 3 * 256 / 2**30.
    assert bias.tolist() == pytest.approx([0.5, 3.0], rel=1e-7)
    assert weight.tolist() == [[1.0, pytest.approx(-64 / 127)], [0.0, 0.0]]


def test_gradients_pass_the_rounding() -> None:
    weight, bias = WEIGHT.clone().requires_grad_(), BIAS.clone().requires_grad_()
    for part in LayerRounding(weights(), given())(weight, bias):
        part.backward(torch.arange(1.0, part.numel() + 1).reshape(part.shape))
    assert weight.grad is not None
    assert bias.grad is not None
    assert weight.grad.flatten().tolist() == [1.0, 2.0, 3.0, 4.0]
    assert bias.grad.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("which", ["weight", "given", "unknown"])
def test_without_a_scale_the_bias_stays_float(which: str) -> None:
    module, source = weights(), given()
    if which == "unknown":
        source = ObservedFakeQuantize("x", QSpec(Scheme("uint8"), MinMax()))
        source.eval()
    else:
        (module if which == "weight" else source).enabled = False
    weight, bias = LayerRounding(module, source)(WEIGHT, BIAS)
    assert torch.equal(bias, BIAS)
    assert torch.equal(weight, WEIGHT) == (which == "weight")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(functional.relu(self.bn(self.conv(x))).mean((2, 3)))
        return result


def test_the_bias_of_a_linear_layer_in_training_is_the_deployed_one() -> None:
    """Inputs of zero leave the biases alone: in training the layer's, rounded."""
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    x = torch.rand(8, 6)
    qat = octavo.prepare_qat(net, x, calibration=[x], progress=False)
    qat.observe(False)
    trained = qat(torch.zeros(1, 6))
    q = octavo.convert(qat).lower("reference")
    assert torch.equal(trained, q(torch.zeros(1, 6)))
    step = qat.qparams()["1"].scale * qat.qparams()["2.weight"].scale
    counts = (q.graph.constants["2.bias"] / step).double()
    assert (counts - counts.round()).abs().max() < 1e-2
    assert not torch.equal(q.graph.constants["2.bias"], net[2].bias)


def test_frozen_norms_are_folded_and_rounded_as_they_are_deployed() -> None:
    torch.manual_seed(0)
    net, x = Net(), torch.rand(8, 2, 5, 5)
    nn.init.ones_(net.bn.bias)
    net(x)
    qat = octavo.prepare_qat(net, x, calibration=[x], progress=False)
    qat.observe(False).freeze_batch_norms()
    q = octavo.convert(qat).lower("reference")
    zeros = torch.zeros_like(x)
    trained = qat(zeros)
    torch.testing.assert_close(trained, q(zeros), rtol=1e-6, atol=1e-6)
    trained.sum().backward()
    gradients = {name: p.grad for name, p in qat.named_parameters()}
    assert all(grad is not None and bool(torch.isfinite(grad).all()) for grad in gradients.values())
    assert gradients["bn.bias"].abs().max() > 0  # type: ignore[union-attr]
