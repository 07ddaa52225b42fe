"""Activations in int8 become uint8: the same values, and results that are still int8."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

import octavo
from octavo.graph.graph import Ref
from octavo.runtimes import lower
from octavo.runtimes.onnx.unsigned import with_unsigned_activations


def test_values_and_results_are_the_same() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 2, 1))
    graph = octavo.quantize(net, calibration=[x], target="edge", progress=False).graph
    roundings = [n.name for n in graph.nodes if n.op == "octavo.quantize.default"]
    graph = replace(graph, outputs=(graph.outputs, *map(Ref, roundings)))
    made = with_unsigned_activations(graph)
    dtypes = {n.args[5] for n in made.nodes if n.op == "octavo.quantize.default"}
    assert dtypes == {torch.uint8}
    cpu = torch.device("cpu")
    before, after = (lower(g, "reference", cpu).run(x) for g in (graph, made))
    assert before[1].dtype == torch.int8
    for one, other in zip(before, after, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_unsigned_ones_are_left_alone() -> None:
    net, x = nn.Linear(4, 4), torch.randn(3, 4)
    graph = octavo.quantize(net, calibration=[x], progress=False).graph
    assert with_unsigned_activations(graph) is graph
