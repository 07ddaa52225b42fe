"""The article on TinyNeuralNetwork: `x + y`, quantized by hand and by the quantizers.

Its steps: a model that adds; the same with stubs, FloatFunctional and fused layers, trained and
converted by hand; then the tool, which does all of that by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import octavo
from octavo.compat import quantization as tq
from octavo.compat.tinynn import DynamicQuantizer, PostQuantizer, QATQuantizer


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.relu(self.bn(self.conv(x)))


class ByHand(Model):
    def __init__(self) -> None:
        super().__init__()
        self.fake_quant = tq.QuantStub()
        self.fake_dequant = tq.DeQuantStub()
        self.float_functional = tq.FloatFunctional()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fake_quant(x)
        y = self.relu(self.bn(self.conv(x)))
        return self.fake_dequant(self.float_functional.add(x, y))


class Deep(nn.Module):
    """Something int8 reads the sum."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.last = inner, nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.inner(x))


class DeepByHand(Deep):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hand = self.inner
        x = hand.fake_quant(x)
        y = hand.relu(hand.bn(hand.conv(x)))
        return hand.fake_dequant(self.last(hand.float_functional.add(x, y)))


def batches() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, 3, 12, 12) for _ in range(6)]


def both(by_tool: nn.Module, by_hand: nn.Module) -> None:
    """The two converted models hold integers in the same places, and return the same."""
    for x in batches():
        assert torch.equal(by_tool(x), by_hand(x))
    plans = [
        [t.runs for t in model.octavo_model.plan.tensors.values()] for model in (by_tool, by_hand)
    ]
    assert plans[0] == plans[1]


def runs(model: nn.Module, op: str) -> str:
    return next(t.runs for t in model.octavo_model.plan.tensors.values() if t.op == op)


@pytest.mark.filterwarnings(
    "ignore::octavo.OctavoWarning"
)  # qnnpack's weights on CPUs without VNNI
@pytest.mark.parametrize(
    ("model", "hand", "inner"),
    [(Model, ByHand, ""), (lambda: Deep(Model()), lambda: DeepByHand(ByHand()), "inner.")],
    ids=["as in the article", "with a layer after the sum"],
)
def test_training_by_the_tool_is_training_by_hand(
    model: Callable[[], nn.Module], hand: Callable[[], nn.Module], inner: str
) -> None:
    float_model, by_hand = model(), hand()
    by_hand.load_state_dict(float_model.state_dict(), strict=False)

    by_hand.train()
    by_hand.qconfig = tq.get_default_qat_qconfig("qnnpack")
    layers = [f"{inner}{name}" for name in ("conv", "bn", "relu")]
    tq.fuse_modules_qat(by_hand, [layers], inplace=True)
    tq.prepare_qat(by_hand, inplace=True)

    quantizer = QATQuantizer(float_model, batches()[0])
    by_tool = quantizer.quantize()
    for x in batches():
        assert torch.equal(by_tool(x), by_hand(x))
    both(tq.convert(by_tool), tq.convert(by_hand))
    assert runs(quantizer.convert(by_tool), "conv2d") == "int8"
    assert runs(quantizer.convert(by_tool), "add") == "int8"  # who reads it or not


@pytest.mark.filterwarnings("ignore::octavo.OctavoWarning")
def test_after_training_by_the_tool_and_by_hand() -> None:
    float_model, by_hand = Model().eval(), ByHand().eval()
    by_hand.load_state_dict(float_model.state_dict())

    by_hand.qconfig = tq.get_default_qconfig("qnnpack")
    tq.fuse_modules(by_hand, [["conv", "bn", "relu"]], inplace=True)
    tq.prepare(by_hand, inplace=True)
    quantizer = PostQuantizer(float_model, batches()[0])
    by_tool = quantizer.quantize()
    for x in batches():
        by_tool(x), by_hand(x)
    int8 = quantizer.convert(by_tool)
    both(int8, tq.convert(by_hand))
    for x in batches():
        assert (int8(x) - float_model(x)).abs().max() < 0.045  # a step and a half of the sum


def test_dynamic_by_the_tool_and_by_hand() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    by_tool = DynamicQuantizer(net, torch.randn(2, 8), config={"asymmetric": False}).quantize()
    by_hand = tq.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    x = torch.randn(5, 8)
    assert torch.equal(by_tool(x), by_hand(x))
    assert (by_tool(x) - net(x)).abs().max() < 0.05


def test_octavo_does_it_in_one_call() -> None:
    net = Deep(Model()).eval()
    q = octavo.quantize(net, calibration=batches(), target="x86-avx2", progress=False)
    assert {t.runs for t in q.plan.tensors.values() if t.op in ("conv2d", "add")} == {"int8"}
