"""Observed ranges, streaming, merging, and the errors that name the batch."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import octavo
from octavo import Calibration, MinMax, MovingAverageMinMax, QConfig, QConfigMapping, QSpec
from octavo.errors import CalibrationError
from octavo.quantization.targets import target


@pytest.fixture
def graph():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )
    return octavo.capture(model, torch.randn(2, 1, 8, 8))


def batches(count: int = 4) -> list[torch.Tensor]:
    return [torch.randn(8, 1, 8, 8) for _ in range(count)]


def test_ranges_are_those_of_the_data(graph):
    data = batches()
    found = octavo.calibrate(graph, octavo.plan(graph), data)
    qparams = found.qparams
    low = min(x.min().item() for x in data)
    high = max(x.max().item() for x in data)
    assert found.batches == 4
    assert math.isclose(qparams["input"].scale.item(), (high - low) / 255, rel_tol=1e-5)
    assert qparams["input"].zero_point.item() == -round(low / ((high - low) / 255))
    assert qparams["1"].zero_point.item() == 0
    assert qparams["2"] is qparams["1"]
    weight = graph.constants["0.weight"]
    assert torch.allclose(qparams["0.weight"].scale, weight.abs().amax((1, 2, 3)) / 127)


def test_one_branch_of_a_concatenation_widens_the_shared_range():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.Conv2d(2, 1, 1)
            for conv, weight in ((self.a, 1.0), (self.b, -10.0)):
                nn.init.constant_(conv.weight, weight)
                nn.init.zeros_(conv.bias)

        def forward(self, x):
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    graph = octavo.capture(Branches(), torch.randn(2, 1, 2, 2))
    x = torch.tensor([-1.0, 0.0, 0.5, 2.0]).reshape(1, 1, 2, 2)
    qparams = octavo.calibrate(graph, octavo.plan(graph), [x]).qparams
    for name in ("a", "b", "cat"):
        assert math.isclose(qparams[name].scale.item(), 30 / 255, rel_tol=1e-5)


def test_a_loader_with_labels_is_taken_as_it_is(graph):
    loader = DataLoader(TensorDataset(torch.cat(batches()), torch.zeros(32)), batch_size=8)
    with_labels = octavo.calibrate(graph, octavo.plan(graph), loader).qparams
    assert set(with_labels) == set(octavo.plan(graph).quantized)


def test_merged_halves_equal_one_pass(graph):
    plan, data = octavo.plan(graph), batches(6)
    whole, one, other = (Calibration(graph, plan) for _ in range(3))
    for x in data:
        whole.observe([x])
    for x in data[:2]:
        one.observe([x])
    for x in data[2:]:
        other.observe([x])
    one.merge(other)
    assert one.batches == 6
    expected = whole.qparams()
    for name, qparams in one.qparams().items():
        assert torch.equal(qparams.scale, expected[name].scale)
        assert torch.equal(qparams.zero_point, expected[name].zero_point)


def test_batches_are_not_kept(graph):
    gc.freeze()  # or all that there was before is looked through for seconds
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def stream():
        nonlocal most
        for _ in range(50):
            x = torch.randn(8, 1, 8, 8)
            alive.append(weakref.ref(x))
            if len(alive) % 20 == 0:
                gc.collect()
                most = max(most, sum(ref() is not None for ref in alive))
            yield x

    octavo.calibrate(graph, octavo.plan(graph), stream())
    assert 1 <= most <= 2


def test_convolutions_make_images_in_the_order_that_they_like(monkeypatch):
    """Channels last: faster than in the order in which images are given, and the same."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4)).eval()
    data = [torch.randn(8, 3, 8, 8) for _ in range(2)]
    graph = octavo.capture(net, data[0])
    seen: list[bool] = []
    update = MinMax.update

    def looking(self, state, x, channel_axis):
        if channel_axis is None:
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return update(self, state, x, channel_axis)

    plan = octavo.plan(graph)
    monkeypatch.setattr(MinMax, "update", looking)
    found = octavo.calibrate(graph, plan, data).qparams
    assert seen == [True] * 4  # what both layers read, of two batches
    with torch.no_grad():
        highest = max(net[:2](x).max().item() for x in data)
    assert math.isclose(found["1"].scale.item(), highest / 255, rel_tol=1e-5)
    assert graph.constants["0.weight"].is_contiguous()


def test_the_observer_of_the_qconfig_is_used(graph):
    weight = target("x86").qconfig.weight
    moving = QConfig(
        QSpec(target("x86").qconfig.activation.scheme, MovingAverageMinMax(0.5)), weight
    )
    plan = octavo.plan(graph, QConfigMapping().set_global(moving))
    data = [torch.full((1, 1, 8, 8), 1.0), torch.full((1, 1, 8, 8), 3.0)]
    qparams = octavo.calibrate(graph, plan, data).qparams
    assert math.isclose(qparams["input"].scale.item(), 2.0 / 255, rel_tol=1e-5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no calibration batch"),
        ([torch.zeros(0, 1, 8, 8)], "batch 0: input 'input' is empty"),
        ([torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), math.nan)], "batch 1: .* has NaN"),
        ([torch.full((2, 1, 8, 8), -math.inf)], "batch 0: .* has an infinity"),
        ([torch.zeros(2, 3, 8, 8)], r"float32\[2, 3, 8, 8\]; expected float32\[N, 1, 8, 8\]"),
        ([torch.zeros(2, 1, 8, 8).double()], r"float64\[2, 1, 8, 8\]; expected float32"),
        ([torch.zeros(8, dtype=torch.long)], "look like labels: pass inputs="),
        ([["text"]], "is 'text': give a tensor"),
        ([None], "a batch is None"),
        (torch.zeros(2, 1, 8, 8), "calibration is a Tensor: give an iterable"),
        (7, "calibration is 7: give an iterable"),
    ],
)
def test_bad_data_is_one_clear_error(graph, data, message):
    with pytest.raises(CalibrationError, match=message):
        octavo.calibrate(graph, octavo.plan(graph), data)


def test_an_overflow_inside_the_model_names_the_tensor():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    nn.init.constant_(model[0].weight, 1e30)
    graph = octavo.capture(model, torch.randn(2, 4))
    with pytest.raises(CalibrationError, match=r"tensor '1' .relu.: the range .* is not finite"):
        octavo.calibrate(graph, octavo.plan(graph), [torch.full((2, 4), 1e30)])


OBSERVERS = (octavo.Histogram(), octavo.MSE(), octavo.Entropy(), octavo.Percentile(99.0))


@pytest.mark.parametrize("observer", OBSERVERS, ids=lambda o: o.name)
def test_every_observer_calibrates_a_model_and_merges(graph, observer):
    mapping = QConfigMapping().set_global(octavo.static_qconfig("x86", observer=observer))
    plan, data = octavo.plan(graph, mapping), batches(4)
    whole, one, other = (Calibration(graph, plan) for _ in range(3))
    for index, x in enumerate(data):
        whole.observe([x])
        (one, other)[index % 2].observe([x])
    one.merge(other)
    expected, found = whole.result(), one.result()
    for name, qparams in found.qparams.items():
        assert torch.equal(qparams.scale, expected.qparams[name].scale)
    for name, mean in found.input_means.items():
        assert torch.allclose(mean, expected.input_means[name], atol=1e-6)
    octavo.convert(graph, plan, found.qparams)


@pytest.mark.parametrize("observer", OBSERVERS, ids=lambda o: o.name)
def test_an_observer_that_meets_an_infinity_inside_the_model_names_the_tensor(observer):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    nn.init.constant_(model[0].weight, 1e30)
    graph = octavo.capture(model, torch.randn(2, 4))
    mapping = QConfigMapping().set_global(octavo.static_qconfig("x86", observer=observer))
    with pytest.raises(CalibrationError, match=r"tensor '1' .*finite"):
        octavo.calibrate(graph, octavo.plan(graph, mapping), [torch.full((2, 4), 1e30)])


def test_input_means_are_those_of_the_data(graph):
    data = batches(3)
    found = octavo.calibrate(graph, octavo.plan(graph), data, progress=False)
    assert set(found.input_means) == {"0", "4"}
    assert torch.allclose(found.input_means["0"], torch.cat(data).mean((0, 2, 3)), atol=1e-6)
    assert found.input_means["4"].shape == (36,)


def test_weights_need_no_batch(graph):
    plan = octavo.plan(graph, mode="weight_only")
    found = Calibration(graph, plan).result()
    assert set(found.qparams) == {"4.weight"}
    assert (found.input_means, found.batches) == ({}, 0)
