"""Layers that write to their own weights in ``forward``: masks, bounded norms, clipped weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from running import run_graph
from torch import Tensor, nn
from torch.nn import functional as F

import octavo
from octavo.errors import CaptureError
from octavo.graph.capture.capture import capture


class Masked(nn.Conv2d):
    """A convolution that sees what stands above and to the left, as PixelCNN has it."""

    def __init__(self, inputs: int, outputs: int, write: Callable[[Masked], object]) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.write = write
        mask = torch.ones(3, 3)
        mask[1, 2:], mask[2] = 0, 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        self.write(self)
        return super().forward(x)


def times(layer: Masked) -> None:
    layer.weight.data *= layer.mask


def assigned(layer: Masked) -> None:
    layer.weight.data = layer.weight.data * layer.mask


def without_gradients(layer: Masked) -> None:
    with torch.no_grad():
        layer.weight.mul_(layer.mask)


def clipped(layer: Masked) -> None:
    layer.weight.data.clamp_(-0.05, 0.05)


def of_bounded_norm(layer: Masked) -> None:
    layer.weight.data = torch.renorm(layer.weight.data, p=2, dim=0, maxnorm=0.3)


WRITES = [times, assigned, without_gradients, clipped, of_bounded_norm]


def net(write: Callable[[Masked], object]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Masked(1, 4, write), nn.ReLU(), Masked(4, 2, write)).eval()


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_the_graph_has_the_weight_as_it_is_used(write: Callable[[Masked], object]) -> None:
    model, x = net(write), torch.randn(2, 1, 6, 6)
    before = [(p, p.data_ptr(), p.detach().clone()) for p in model.parameters()]
    graph = capture(model, x)
    for parameter, place, value in before:
        assert parameter.data_ptr() == place
        assert torch.equal(parameter, value)
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(run_graph(graph, x), expected, atol=1e-6, rtol=1e-5)
    assert [node.short_op for node in graph.nodes] == ["conv2d", "relu", "conv2d"]


def test_a_weight_that_changes_at_each_call_is_an_error() -> None:
    def smaller(layer: Masked) -> None:
        layer.weight.data *= 0.5

    model = net(smaller)
    before = model[0].weight.detach().clone()
    with pytest.raises(CaptureError, match=r"changes 0\.weight, 2\.weight at each call.*F\.linear"):
        capture(model, torch.randn(2, 1, 6, 6))
    assert torch.equal(model[0].weight, before)


def test_data_of_other_tensors_is_the_tensor() -> None:
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            y.data.clamp_(min=0.1)
            return y + F.one_hot(y.data.argmax(-1), 4)

    model, x = Clamped().eval(), torch.randn(3, 6)
    with torch.no_grad():
        torch.testing.assert_close(run_graph(capture(model, x), x), model(x))


def test_training_keeps_what_is_masked() -> None:
    model, x = net(times), torch.rand(4, 1, 6, 6)
    qat = octavo.prepare_qat(model, x, calibration=[x])
    optimizer = torch.optim.Adam(qat.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        qat(x).square().mean().backward()
        optimizer.step()
    q, other = octavo.convert(qat), x.clone()
    other[:, :, 3, 3] += 1
    changed = (q(other) != q(x)).any(0).any(0)
    assert not changed[:3].any()
    assert not changed[3, :3].any()
    assert changed[3:].any()
