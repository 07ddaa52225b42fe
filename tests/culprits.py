"""Networks in which quantizing one layer hurts far more than all others, and which one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DEPTH, WIDTH = 6, 24


def _perceptron(chance: torch.Generator) -> nn.Sequential:
    net = nn.Sequential()
    for index in range(DEPTH):
        layer = nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(WIDTH, WIDTH, generator=chance) * (2 / WIDTH) ** 0.5)
            layer.bias.copy_(0.1 * torch.randn(WIDTH, generator=chance))
        net.add_module(f"layer{index}", layer)
        if index < DEPTH - 1:
            net.add_module(f"relu{index}", nn.ReLU())
    return net.eval()


def planted(kind: str, seed: int) -> tuple[nn.Sequential, Tensor, str]:
    """A network, its data and its culprit.

    ``"weight"``: large weights on an input that is always 0, so that they do nothing but widen
    the scale. ``"activation"``: an input with heavy tails that the layer's weights ignore.
    """
    chance = torch.Generator().manual_seed(seed)
    net = _perceptron(chance)
    culprit = int(torch.randint(1, DEPTH, (1,), generator=chance))
    channel = int(torch.randint(0, WIDTH, (1,), generator=chance))
    before, layer = net.get_submodule(f"layer{culprit - 1}"), net.get_submodule(f"layer{culprit}")
    assert isinstance(before, nn.Linear)
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        if kind == "weight":
            before.weight[channel], before.bias[channel] = 0.0, -1.0
            layer.weight[:, channel] = 200.0
        else:
            before.weight[channel] *= 100.0
            before.bias[channel] = 100.0
            layer.weight[:, channel] = 0.0
    return net, torch.randn(128, WIDTH, generator=chance), f"layer{culprit}"
