"""`octavo.HQQ`: half-quadratic scales and zero points."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from weight_ranges import of_ranges

import octavo
from octavo.numerics.affine import QParams, fake_quantize
from octavo.quantization.weights.hqq import half_quadratic

SCHEMES = [
    octavo.Scheme("int4", symmetric=True, group_size=8),
    octavo.Scheme("uint4", group_size=8),
    octavo.Scheme("uint2", group_size=8),
    octavo.Scheme("uint4", channel_axis=0),
]


def by_hand(
    group: list[float], scale: float, zero: float, scheme: octavo.Scheme
) -> tuple[float, float]:
    """The equations of the paper for one group, a number at a time, in 64 bits."""
    unit, s, beta, best = scale, 1.0, 10.0, (math.inf, 0.0, 0.0)
    x = [value / unit for value in group]
    for _ in range(21):
        q = [min(max(round(v / s) + zero, scheme.qmin), scheme.qmax) for v in x]
        errors = [v - s * (n - zero) for v, n in zip(x, q, strict=True)]
        cost = sum(abs(e) ** 0.7 for e in errors)
        if cost < best[0] - 1e-9:
            best = (cost, s, zero)
        kept = [
            math.copysign(max(0.0, abs(e) - abs(e) ** (0.7 - 1) / beta), e) if e else 0.0
            for e in errors
        ]
        wanted = [v - e for v, e in zip(x, kept, strict=True)]
        if not scheme.symmetric:
            mean = sum(n - w / s for n, w in zip(q, wanted, strict=True)) / len(x)
            zero = min(max(round(mean), scheme.qmin), scheme.qmax)
        steps = [n - zero for n in q]
        below = sum(n * n for n in steps)
        s = sum(n * w for n, w in zip(steps, wanted, strict=True)) / below
        beta *= 1.01
    return best[1] * unit, best[2]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_equations_number_by_number(scheme: octavo.Scheme) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 16) ** 3 / 10
    start = of_ranges(weight, scheme)
    # At the scales of the ranges the largest values lie between two integers.
    start = QParams(start.scale * 1.01, start.zero_point, scheme)
    found = half_quadratic(weight, start, 0.7, 10.0, 20)
    rows = weight.reshape(start.scale.numel(), -1)
    for at, (scale, zero) in enumerate(
        zip(start.scale.flatten().tolist(), start.zero_point.flatten().tolist(), strict=True)
    ):
        s, z = by_hand(rows[at].double().tolist(), scale, zero, scheme)
        assert float(found.scale.flatten()[at]) == pytest.approx(s, rel=1e-4)
        assert int(found.zero_point.flatten()[at]) == z


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_no_group_is_worse_than_nearest(scheme: octavo.Scheme) -> None:
    torch.manual_seed(1)
    weight = torch.randn(64, 16) ** 3
    start = of_ranges(weight, scheme)
    found = half_quadratic(weight, start, 0.7, 10.0, 20)
    costs = [
        (weight - fake_quantize(weight, qparams)).abs().pow(0.7).reshape(-1, 8).sum(1)
        for qparams in (start, found)
    ]
    if scheme.group_size:
        assert bool((costs[1] <= costs[0] * (1 + 1e-4)).all())
    assert float(costs[1].sum()) < 0.95 * float(costs[0].sum())


def test_weights_of_nothing_and_a_whole_model() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(32, 8)
    with torch.no_grad():
        layer.weight.pow_(3).mul_(100)
        layer.weight[0] = 0
    four = octavo.weight_only_qconfig(4, group_size=32, symmetric=False)

    def error(*methods: octavo.WeightMethod) -> float:
        q = octavo.quantize(layer, mode="weight_only", qconfig=four, weights=methods)
        with torch.no_grad():
            y = q(torch.eye(32)) - layer(torch.eye(32))
        assert bool(torch.isfinite(y).all())
        assert float(y[:, 0].abs().max()) < 1e-6
        return float(y.abs().pow(0.7).sum())

    assert error(octavo.HQQ()) < error()
