"""The layers' own times, and a trial without those that int8 makes slower."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from residual import ResidualNet
from torch import Tensor

import octavo
from octavo.graph.calls import flatten_call
from octavo.graph.cuts import Cuts
from octavo.quantization.float_graph import without_rounding
from octavo.runtimes import lower
from octavo.runtimes.timing import Latency
from octavo.searching import layer_times, recipe
from octavo.searching.layer_times import LayerTime

TARGET = octavo.host_target()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def q(images: Tensor) -> octavo.QuantizedModel:
    torch.manual_seed(0)
    return octavo.quantize(ResidualNet().eval(), calibration=[images], target=TARGET)


def test_every_layer_is_timed(q: octavo.QuantizedModel, images: Tensor) -> None:
    found = layer_times.layer_times(q, flatten_call(q.graph, (images,), {}), budget_s=0.01)
    assert [time.layer for time in found] == ["conv", "conv2", "fc"]
    assert all(time.float_s > 0 for time in found)


def test_the_quantize_step_in_front_is_taken_off_within_each_round(
    q: octavo.QuantizedModel, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine was ten times slower in the second round: all were, and the ratio stays."""

    def clock(calls: dict[str, object], budget_s: float) -> dict[str, Latency]:
        seconds = {"float": 2.0, "int8": 4.0, "entry": 1.0}
        return {
            name: Latency(((t := seconds[name.split()[-1]],), (10 * t,), (2 * t,)))
            for name in calls
        }

    monkeypatch.setattr(layer_times, "interleave", clock)
    found = layer_times.layer_times(q, flatten_call(q.graph, (images,), {}))
    assert found[0] == LayerTime("conv", 4.0, 6.0, 1.5, 2.0)
    assert not found[0].slower  # a float island there would cost what it gains
    assert LayerTime("conv", 2.0, 3.0, 1.5, 0.9).slower
    assert not LayerTime("conv", 2.0, 2.1, 1.05, 0.0).slower


def test_the_pieces_are_the_layers_kernels(q: octavo.QuantizedModel, images: Tensor) -> None:
    """Each runs on an int8 kernel, and without its rounding on none."""
    pieces = [p for p in Cuts.of(q.graph, [images]).pieces() if p.entries]
    assert len(pieces) > 2
    for piece in pieces:
        lowered = lower(piece.graph, "torch", q.device)
        assert {node.name for node in piece.layers} <= set(lowered.kernels)
        assert not lowered.fallbacks
        plain = lower(without_rounding(piece.graph), "torch", q.device)
        assert not plain.kernels
        exact, rounded = plain.run(*piece.inputs)[0], lowered.run(*piece.inputs)[0]
        assert exact.shape == rounded.shape
        assert exact.is_floating_point()


@pytest.mark.sweep
def test_slower_layers_stay_float_and_a_search_that_goes_on_measures_none_again(
    images: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # On a CPU with bfloat16 it would be tried for what stays float.
    monkeypatch.setattr(sys.modules["octavo.searching.search"], "has_bf16", lambda: False)
    times = (LayerTime("conv", 1.0, 3.0, 3.0), LayerTime("fc", 1.0, 0.5, 0.5))
    asked: list[octavo.QuantizedModel] = []

    def measured(q: octavo.QuantizedModel, tensors: list[Tensor]) -> tuple[LayerTime, ...]:
        asked.append(q)
        return times

    monkeypatch.setattr(recipe, "layer_times", measured)
    torch.manual_seed(0)
    net = ResidualNet().eval()
    with torch.no_grad():
        data = [(images, net(images).argmax(1))]

    def search(**changes: object) -> octavo.SearchResult:
        settings = {"max_drop": 100.0, "checkpoint": tmp_path, "target": TARGET} | changes
        return octavo.search(net, calibration=data, data=data, **settings)  # type: ignore[arg-type]

    found = search()
    last = found.trials[-1]
    assert (last.name, last.in_float) == ("static, slower layers in float", ("conv",))
    assert last.reason == "int8 makes 1 layers slower here: conv 3.00x"
    assert last.int8 == found.trials[0].int8 - 2  # the convolution and its relu
    assert found.layer_times == times
    assert found.to_dict()["layer_times"][0]["int8_over_float"] == 3.0
    again = search()
    assert again.trials == found.trials
    assert len(asked) == 1
    smallest = search(objective="smallest", checkpoint=None)
    assert [trial.name for trial in smallest.trials] == ["static", "dynamic"]
    assert smallest.layer_times is None
