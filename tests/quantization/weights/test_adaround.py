"""`octavo.AdaRound`."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.numerics.affine import QParams, quantized
from octavo.quantization.weights.adaround import AdaRound, Choice, learned_shares
from octavo.quantization.weights.layers import Rounded

CHANNELS = octavo.Scheme("int4", symmetric=True, channel_axis=0)


def rounded(weight: Tensor, scale: float = 1.0) -> Rounded:
    """To the nearest integers."""
    zero_point = torch.zeros(len(weight), dtype=torch.int32)
    qparams = QParams(torch.full((len(weight),), scale), zero_point, CHANNELS)
    return Rounded(quantized(weight, qparams), qparams)


def moments_of(x: Tensor) -> Tensor:
    return x.transpose(-2, -1) @ x / x.shape[-2]


def cost(error: Tensor, moments: Tensor) -> Tensor:
    return ((error @ moments) * error).sum(-1)


def mixed(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Inputs that have much in common."""
    chance = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=chance)
    return torch.randn(rows, columns, generator=chance) @ mix


def test_near_the_best_of_all_choices() -> None:
    """Of eight weights all 256 are tried, in each of 40 rows."""
    torch.manual_seed(1)
    moments, weight = moments_of(mixed(500, 8)), torch.randn(40, 8) * 2
    found = cost(AdaRound().integers(weight, moments, rounded(weight)) - weight, moments)
    ways = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)))
    errors = weight.floor() + ways.unsqueeze(1) - weight
    best, nearest = cost(errors, moments).amin(0), cost(weight.round() - weight, moments)
    assert found.sum() - best.sum() < 0.2 * (nearest.sum() - best.sum())


def by_autograd(weight: Tensor, x: Tensor, steps: int) -> Tensor:
    """The paper's equations 21 to 25 written down, on the inputs themselves, by torch's Adam."""
    below = weight.floor()
    unit = (x @ (weight.round() - weight).t()).square().mean(0) / weight.shape[1]
    logits = torch.logit((weight - below + 0.1) / 1.2).requires_grad_()
    adam = torch.optim.Adam([logits], lr=0.02)
    for step in range(steps):
        h = (torch.sigmoid(logits) * 1.2 - 0.1).clamp(0, 1)
        loss = ((x @ (below + h - weight).t()).square().mean(0) / unit).sum()
        done = step / steps
        if done >= 0.2:
            beta = 2 + 18 * (1 + torch.cos(torch.tensor(torch.pi * (done - 0.2) / 0.8))) / 2
            loss = loss + 5.0 * (1 - (2 * h - 1).abs().pow(beta)).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return torch.sigmoid(logits.detach()) >= 0.5


def test_what_the_paper_s_equations_give() -> None:
    torch.manual_seed(0)
    x, weight = mixed(300, 24), torch.randn(16, 24) * 2
    goes_up = by_autograd(weight, x, 300)
    choice = Choice.of(weight, moments_of(x), rounded(weight))
    found = learned_shares(choice, iter([step / 300 for step in range(300)])).squeeze(0) >= 0.5
    assert (found != goes_up).float().mean() < 0.02
    assert (goes_up != (weight - weight.floor() >= 0.5)).float().mean() > 0.1


def test_none_can_be_moved_alone() -> None:
    torch.manual_seed(5)
    x, weight = mixed(200, 12), torch.randn(6, 12) * 2
    moments, before = moments_of(x), rounded(weight)
    found = AdaRound(steps=20).integers(weight, moments, before)
    least = cost(found - weight, moments)
    for at in range(12):
        for step in (-1.0, 1.0):
            moved = found.clone()
            moved[:, at] += step
            worse = cost(moved - weight, moments) >= least * (1 - 1e-4)
            assert bool((worse | (moved[:, at] < -8) | (moved[:, at] > 7)).all())


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_no_row_becomes_worse(scale: float) -> None:
    """Not even with one step, with integers from elsewhere, or with weights beyond the range."""
    torch.manual_seed(2)
    x, weight = mixed(64, 24), torch.randn(32, 24) * 2
    before, moments = rounded(weight, scale), moments_of(x)
    for steps in (1, 40):
        found = AdaRound(steps=steps).integers(weight, moments, before)
        assert int(found.min()) >= -8
        assert int(found.max()) <= 7
        costs = [
            cost(q.double() * scale - weight, moments.double()) for q in (before.integers, found)
        ]
        assert bool((costs[1] <= costs[0]).all())
        assert bool((costs[1] < costs[0]).any())


def test_groups_of_rows_have_inputs_of_their_own() -> None:
    torch.manual_seed(3)
    x = torch.stack([mixed(200, 9, seed) for seed in range(4)])
    weight = torch.randn(8, 9) * 2
    together = AdaRound(steps=50).integers(weight, moments_of(x), rounded(weight))
    for group, rows in enumerate(weight.split(2)):
        alone = AdaRound(steps=50).integers(rows, moments_of(x[group]), rounded(rows))
        assert torch.equal(together[2 * group : 2 * group + 2], alone)


def test_in_a_model() -> None:
    """A convolution, a depthwise one and a linear layer of four bits."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(128, 4)
    ).eval()
    data = [torch.randn(32, 3, 8, 8).cumsum(3) for _ in range(4)]
    weight = octavo.QSpec(CHANNELS, octavo.MinMax())
    qconfig = octavo.QConfig(octavo.static_qconfig().activation, weight)
    noise = {}
    for methods in ((), (octavo.AdaRound(steps=200),), (octavo.GPTQ(), octavo.AdaRound(steps=200))):
        q = octavo.quantize(net, calibration=data, qconfig=qconfig, weights=methods, progress=False)
        with torch.no_grad():
            pairs = [(q.lower("reference")(x), net(x)) for x in data]
        noise[len(methods)] = sum(float((a - b).square().sum()) for a, b in pairs)
    assert noise[1] < 0.6 * noise[0]
    assert noise[2] < 0.6 * noise[0]


def test_a_time_that_is_over_ends_it() -> None:
    torch.manual_seed(4)
    weight, moments = torch.randn(8, 16) * 2, moments_of(mixed(100, 16))
    before = rounded(weight)
    found = AdaRound(steps=10**9, seconds=0.05).integers(weight, moments, before)
    assert bool((cost(found - weight, moments) <= cost(before.integers - weight, moments)).all())
