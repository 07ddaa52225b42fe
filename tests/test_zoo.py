"""Every network of the zoo: captured, quantized in each mode, and run at other sizes."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import zoo
from capturing import captured_as
from running import run_graph
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import octavo
from benchmarks import reach
from octavo.graph.as_json import from_json, to_json
from octavo.graph.graph import Graph
from octavo.graph.multiply_adds import multiply_adds

CAPTURED, RUN = 2, (1, 3)  # batch sizes
# Random weights: rounding noise meets nothing that training made robust. The networks of the spread
# come some 6 dB above these on any CPU; see benchmarks/reach.py for the figures.
LEAST_DB = {"static": 16.0, "dynamic": 22.0, "weight_only": 30.0}
# Noise grows in deep convolutional networks, and nodes with more edges than calibration saw clip.
FRAGILE_DB = {"mobilenet_v2": 6.0, "graph_network": 6.0}
OTHERS_DB = 0.5  # of those that are not in the spread
# One or two of each kind: what `make test` runs.
SPREAD = frozenset(
    """
    unet lstm transformer_encoder_padded time_major_lstm_with_states gru_cells crnn conformer
    yolo_like graph_network diffusion_unet dlrm autoencoder edsr
    mobilenet_v2 squeezenet1_1 vit_b_32 r3d_18
    bert gpt2 llama t5 bart fnet wav2vec2 segformer
    mixer_s32_224 resmlp_12_224
    """.split()
)
# Those of them that take the longest are for `make zoo` as well.
SLOW = frozenset(
    "conformer diffusion_unet mobilenet_v2 vit_b_32 r3d_18 bart segformer resmlp_12_224".split()
)
# Graph and model are compared in float64: of the rounding of float32 these networks make a tenth of
# their signal at these random weights.
IN_FLOAT64 = frozenset({"levit_128s"})
# These multiply constants (positions) at each call, which the graph holds as a result.
FOLDED = frozenset({"deberta_v2", "swinv2_tiny_window8_256"})
UNKNOWN_TO_TORCH = frozenset({"lstm", "gru", "fft_fftn", "fft_fft", "fft_fft2"})


def deviation(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    difference = (found.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max().clamp_min(1e-30))


def furthest(model: nn.Module, graph: Graph, calls: Sequence[Any]) -> float:
    """The largest deviation of a graph, in float, from its model."""
    with torch.no_grad():
        return max(
            deviation(
                reach.floats(run_graph(graph, *args, **kwargs)),
                reach.floats(model(*args, **kwargs)),
            )
            for args, kwargs in calls
        )


def doubles(call: Any) -> Any:
    """A call with its floats in float64."""
    return pytree.tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, call)


def listed() -> list[Any]:
    """All networks: those that are not in the spread, or slow, are for `make zoo`."""
    rest = pytest.mark.whole_zoo
    return [
        pytest.param(entry, id=entry.name, marks=() if entry.name in SPREAD - SLOW else rest)
        for entry in zoo.ENTRIES
    ]


@pytest.mark.parametrize("entry", listed())
def test_a_network_is_quantized_in_each_mode_and_run(entry: zoo.Entry) -> None:
    pytest.importorskip(entry.family)
    model = entry.build()
    args, kwargs = reach.call(entry, CAPTURED, seed=0)
    graph = octavo.capture(model, args, kwargs)
    counted = sum(multiply_adds(graph).values())
    if entry.name in FOLDED:
        assert 0 < counted < torchs_count(model, args, kwargs)
    elif UNKNOWN_TO_TORCH.isdisjoint(node.short_op for node in graph.nodes):
        assert counted == torchs_count(model, args, kwargs)
    calls = reach.calls(entry)
    with torch.no_grad():
        expected = [reach.floats(model(*args, **kwargs)) for args, kwargs in calls]
    if entry.name in IN_FLOAT64:
        exact, doubled = copy.deepcopy(model).double(), [doubles(call) for call in calls]
        args, kwargs = doubles((args, kwargs))
        assert furthest(exact, octavo.capture(exact, args, kwargs), doubled) < 1e-9
    else:
        assert furthest(model, graph, calls) < 1e-3
    for mode in ("static", "dynamic", "weight_only"):
        with captured_as(graph):
            q = reach.quantized(entry, model, graph, mode, octavo.host_target())
        results = [reach.floats(q(*args, **kwargs)) for args, kwargs in calls]
        assert math.isfinite(db := reach.sqnr_db(expected, results))
        least = LEAST_DB[mode] if entry.name in SPREAD else OTHERS_DB
        assert db > FRAGILE_DB.get(entry.name, least)
        assert on_integers(q) > 0  # not silently float
    data = json.loads(json.dumps(to_json(q.graph)))
    assert from_json(data, q.graph.constants).nodes == q.graph.nodes  # checks every shape too


def on_integers(q: octavo.QuantizedModel) -> int:
    """The multiply-adds of the layers that the plan puts on integers."""
    counts = multiply_adds(q.graph)
    return sum(counts.get(name, 0) for name, t in q.plan.tensors.items() if t.on_integers)


def torchs_count(model: nn.Module, args: Any, kwargs: Any) -> float:
    """The multiply-adds that torch counts."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    products = sdpa_kernel(SDPBackend.MATH)  # the counter knows no fused kernel of CPUs
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), products:
            model(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
@pytest.mark.parametrize("entry", zoo.IN_PARTS, ids=lambda entry: entry.name)
def test_a_network_that_no_graph_can_hold_is_quantized_in_parts(
    entry: zoo.Entry, mode: str
) -> None:
    model = entry.build()
    data = [entry.example(4) for _ in range(2)]
    has_convolutions = any(isinstance(module, nn.Conv2d) for module in model.modules())
    rule = convolutions(mode) if has_convolutions and mode != "static" else None
    with pytest.warns(octavo.OctavoWarning, match="its largest parts that can be captured"):
        q = octavo.quantize(
            model,
            calibration=data,
            mode=mode,
            qconfig=rule,
            target=octavo.host_target(),
            progress=False,
        )
    assert type(q) is type(model)
    parts = [part for part in q.modules() if isinstance(part, octavo.QuantizedModel)]
    assert sum(map(on_integers, parts)) > 0
    expected, found = [], []
    for batch in RUN:
        args, kwargs = reach.call(entry, batch, seed=batch)
        for network, results in ((model, expected), (q, found)):
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(batch)  # some draw noise
                results.append(reach.floats(network(*args, **kwargs)))
    assert reach.sqnr_db(expected, found) > 15


def convolutions(mode: str) -> octavo.QConfigMapping:
    """Convolutions are static unless a rule asks."""
    dynamic, only = octavo.dynamic_qconfig(octavo.host_target()), octavo.weight_only_qconfig()
    return octavo.QConfigMapping().set_object_type("conv2d", dynamic if mode == "dynamic" else only)


def test_the_zoo_is_alive() -> None:
    """Names are unique, and a result depends on what the network is given."""
    names = [entry.name for entry in (*zoo.ENTRIES, *zoo.IN_PARTS)]
    assert len(set(names)) == len(names) >= 90
    assert set(names) >= SPREAD
    pytest.importorskip("torchvision")
    for name in ("vit_b_32", "mobilenet_v2"):
        entry = zoo.BY_NAME[name]
        args, kwargs = zoo.arguments(entry.example(2))
        with torch.no_grad():
            one, other = entry.build()(*args, **kwargs)
        assert deviation(one, other) > 0.1
