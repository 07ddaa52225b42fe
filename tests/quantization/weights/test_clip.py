"""`octavo.Clip`: ranges at which rounding costs least."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from weight_ranges import of_ranges

import octavo
from octavo.numerics.affine import fake_quantize, unchecked_qparams
from octavo.quantization.weights.clip import PARTS, clipped

GROUPS = octavo.Scheme("int4", symmetric=True, group_size=4)


@pytest.mark.parametrize(
    "scheme",
    [
        GROUPS,
        octavo.Scheme("uint4", group_size=4),
        octavo.Scheme("int4", symmetric=True, channel_axis=0),
        octavo.Scheme("uint4", channel_axis=0),
    ],
    ids=str,
)
@pytest.mark.parametrize("weighed", [False, True])
def test_no_other_part_of_the_range_costs_less(scheme: octavo.Scheme, weighed: bool) -> None:
    """Each row and group by itself, by trying all parts on it alone."""
    torch.manual_seed(0)
    weight = torch.randn(3, 8) ** 3
    importance = torch.rand(8) ** 4 if weighed else None
    size = scheme.group_size or 8
    found = clipped(weight, of_ranges(weight, scheme), importance)
    factors = torch.ones(8) if importance is None else importance
    alone = octavo.Scheme(scheme.dtype, symmetric=scheme.symmetric)
    for row in range(3):
        for start in range(0, 8, size):
            part, of = weight[row, start : start + size], factors[start : start + size]
            costs = []
            for share in PARTS:
                tried = unchecked_qparams(part.amin() * share, part.amax() * share, alone)
                costs.append(float(((fake_quantize(part, tried) - part).square() * of).sum()))
            rounded = fake_quantize(weight, found)[row, start : start + size]
            cost = float(((rounded - part).square() * of).sum())
            assert cost == pytest.approx(min(costs), rel=1e-5)


def test_what_inputs_do_not_read_may_be_cut_off() -> None:
    weight = torch.tensor([[0.7, 0.3, -0.5, 8.0]])
    plain = clipped(weight, of_ranges(weight, GROUPS), None)
    seen = clipped(weight, of_ranges(weight, GROUPS), torch.tensor([1.0, 1.0, 1.0, 1e-6]))
    assert seen.scale < 0.5 * plain.scale


def test_a_graph_is_nearer_to_float_by_it() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 16)
    with torch.no_grad():
        layer.weight.pow_(3).mul_(100)
    data = [torch.randn(64, 64) * torch.logspace(-1, 1, 64) for _ in range(2)]

    def error(*methods: octavo.WeightMethod) -> float:
        q = octavo.quantize(
            layer,
            calibration=data,
            qconfig=octavo.weight_only_qconfig(4, group_size=32),
            mode="weight_only",
            weights=methods,
            progress=False,
        )
        return float((q(data[0]) - layer(data[0])).norm())

    nearest, plain = error(), error(octavo.Clip(by_input=False))
    assert plain < nearest
    assert error(octavo.Clip()) < plain


def test_layers_that_multiply_integers_keep_their_scales() -> None:
    """Their kernels may need the room that the scales leave."""
    data = [torch.randn(8, 16)]
    q = octavo.quantize(nn.Linear(16, 4), calibration=data, weights=[octavo.Clip()])
    assert "clip" not in q.provenance["weights"]


def test_groups_of_rows_have_inputs_of_their_own() -> None:
    torch.manual_seed(0)
    scheme = octavo.Scheme("int4", symmetric=True, channel_axis=0)
    weight, importance = torch.randn(4, 6) ** 3, torch.rand(2, 6) ** 4
    whole = clipped(weight, of_ranges(weight, scheme), importance)
    halves = [
        clipped(rows, of_ranges(rows, scheme), own)
        for rows, own in zip(weight.split(2), importance, strict=True)
    ]
    assert torch.equal(whole.scale, torch.cat([half.scale for half in halves]))


def test_static_convolutions_of_few_bits() -> None:
    """Two groups, in each of which one input is loud and another one nearly silent."""
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, groups=2, bias=False)
    with torch.no_grad():
        layer.weight.pow_(3).mul_(100)
    loud = torch.logspace(-1, 1, 4).repeat(2)[:, None, None]
    data = [torch.randn(8, 8, 6, 6) * loud for _ in range(2)]

    def error(*methods: octavo.WeightMethod) -> float:
        q = octavo.quantize(
            layer,
            calibration=data,
            qconfig=octavo.static_qconfig(weight_bits=4),
            target="x86",
            weights=methods,
            progress=False,
        )
        return float((q.lower("reference")(data[0]) - layer(data[0])).norm())

    assert error(octavo.Clip()) < 0.95 * error()
