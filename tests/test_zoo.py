"""Every network of the zoo: captured at one batch size, quantized, and run at two others."""

from __future__ import annotations

import json
import math

import pytest
import torch
import zoo
from running import run_graph
from torch import Tensor

import octavo
from benchmarks import reach
from octavo.graph.as_json import from_json, to_json

CAPTURED, RUN = 2, (1, 3)  # batch sizes
# Random weights: rounding noise meets nothing that training made robust, and the noise of deep
# convolutional networks grows close to their signal. See benchmarks/reach.py for the figures.
LEAST_DB = 1.0


def deviation(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    difference = (found.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("entry", zoo.ENTRIES, ids=lambda entry: entry.name)
def test_a_network_is_captured_quantized_and_run(entry: zoo.Entry) -> None:
    pytest.importorskip(entry.family)
    model = entry.build()
    args, kwargs = reach.call(entry, CAPTURED, seed=0)
    graph = octavo.capture(model, args, kwargs)
    calls = [reach.call(entry, batch, seed=batch) for batch in RUN]
    with torch.no_grad():
        expected = [reach.floats(model(*args, **kwargs)) for args, kwargs in calls]
    for (args, kwargs), floats in zip(calls, expected, strict=True):
        assert deviation(reach.floats(run_graph(graph, *args, **kwargs)), floats) < 1e-3
    for mode in ("static", "dynamic"):
        q = reach.quantized(entry, model, graph, mode, octavo.host_target())
        found = [reach.floats(q(*args, **kwargs)) for args, kwargs in calls]
        assert q.summary().int8 > 0
        assert math.isfinite(db := reach.sqnr_db(expected, found))
        assert db > LEAST_DB
    data = json.loads(json.dumps(to_json(q.graph)))
    assert from_json(data, q.graph.constants).nodes == q.graph.nodes  # checks every shape too


@pytest.mark.parametrize(
    "name", ["lstm", "transformer_encoder_padded", "squeezenet1_1", "bert", "gpt2"]
)
@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_one_call_does_it_all(name: str, mode: str) -> None:
    entry = zoo.BY_NAME[name]
    pytest.importorskip(entry.family)
    model = entry.build()
    calibration = [entry.example(4) for _ in range(2)]
    mapping = reach.rule_for(octavo.capture(model, *reach.call(entry, 2, 0)), mode, "x86-avx2")
    q = octavo.quantize(
        model, calibration=calibration, mode=mode, qconfig=mapping, target="x86-avx2"
    )
    args, kwargs = zoo.arguments(calibration[0])
    with torch.no_grad():
        expected = reach.floats(model(*args, **kwargs))
    assert reach.sqnr_db([expected], [reach.floats(q(*args, **kwargs))]) > 15


def test_the_zoo_is_alive() -> None:
    """Names are unique, and a result depends on what the network is given."""
    names = [entry.name for entry in zoo.ENTRIES]
    assert len(set(names)) == len(names)
    pytest.importorskip("torchvision")
    for name in ("vit_b_32", "mobilenet_v2"):
        entry = zoo.BY_NAME[name]
        args, kwargs = zoo.arguments(entry.example(2))
        with torch.no_grad():
            one, other = entry.build()(*args, **kwargs)
        assert deviation(one, other) > 0.1
