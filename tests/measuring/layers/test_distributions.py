"""Histograms of tensors, against those that NumPy counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.errors import InputError


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.randn(3, 4, 3, 8, 8))


@pytest.fixture(scope="module")
def q(net: nn.Module, batches: list[Tensor]) -> octavo.QuantizedModel:
    return octavo.quantize(net, calibration=batches, target="x86", bias_correction=False)


def test_counts_are_those_of_all_batches(
    net: nn.Module, q: octavo.QuantizedModel, batches: list[Tensor]
) -> None:
    seen = octavo.distributions(net, q, batches, progress=False)
    assert list(seen) == list(q.plan.quantized)
    x = torch.cat(batches)
    for name, values in (
        ("x" if "x" in seen else "input", x),
        ("1", net[1](net[0](x))),
        ("0.weight", net[0].weight),
        ("3.weight", net[3].weight),
    ):
        one = seen[name]
        edges = one.start + one.width * np.arange(len(one.counts) + 1)
        counted, _ = np.histogram(values.detach().double().numpy(), edges)
        assert one.counts == tuple(counted)
        assert sum(one.counts) == values.numel()
        assert (one.low, one.high) == (float(values.min()), float(values.max()))


def test_the_range_of_the_integers_is_that_of_scale_and_zero_point(
    net: nn.Module, q: octavo.QuantizedModel, batches: list[Tensor]
) -> None:
    seen = octavo.distributions(net, q, batches, progress=False)
    scales = q.state_dict()["0.weight_scale"]
    weight = seen["0.weight"]
    assert weight.clip_high == pytest.approx(float(scales.max()) * 127)
    assert weight.clip_low == pytest.approx(
        -float(scales.max()) * q.plan.tensors["0.weight"].spec.scheme.qmax, rel=0.02
    )
    relu = next(node for node in q.graph.nodes if node.name == "1.quantized")
    scale, zero_point = relu.args[1:3]
    assert seen["1"].clip_low == pytest.approx(-zero_point * scale)
    assert seen["1"].clip_high == pytest.approx((255 - zero_point) * scale)
    assert seen["1"].kind == "activation"


def test_few_values_get_few_bins(net: nn.Module, batches: list[Tensor]) -> None:
    small = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    q = octavo.quantize(small, calibration=[x], target="x86")
    assert all(len(one.counts) <= 16 for one in octavo.distributions(small, q, [x]).values())


def test_weight_only_has_no_range_for_activations(net: nn.Module, batches: list[Tensor]) -> None:
    q = octavo.quantize(net, batches[0], mode="weight_only", target="x86")
    seen = octavo.distributions(net, q, batches, progress=False)
    assert {one.kind for one in seen.values()} == {"weight"}


def test_no_data_and_another_model(net: nn.Module, q: octavo.QuantizedModel) -> None:
    with pytest.raises(InputError, match="no data"):
        octavo.distributions(net, q, [], progress=False)
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    with pytest.raises(InputError, match="made from another model"):
        octavo.distributions(other, q, [torch.randn(2, 3, 8, 8)], progress=False)
