"""Every network of the zoo becomes a graph that does what the network does, on any batch size."""

from __future__ import annotations

import json

import pytest
import torch
import zoo
from running import run_graph
from torch import Tensor
from torch.utils import _pytree as pytree

from octavo.capture import capture
from octavo.exporting import as_records
from octavo.graph_json import from_json, to_json

CAPTURED, RUN = 2, (1, 3)  # batch sizes


def tensors(result: object) -> list[Tensor]:
    """A result's tensors; what export does not know, such as a cache, by its attributes."""
    return [leaf for leaf in pytree.tree_leaves(as_records(result)) if isinstance(leaf, Tensor)]


def deviation(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    difference = (found.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("entry", zoo.ENTRIES, ids=lambda entry: entry.name)
def test_a_network_is_captured(entry: zoo.Entry) -> None:
    pytest.importorskip(entry.family)
    model = entry.build()
    args, kwargs = zoo.arguments(entry.example(CAPTURED))
    graph = capture(model, args, kwargs)
    for batch in RUN:
        args, kwargs = zoo.arguments(entry.example(batch))
        with torch.no_grad():
            expected = tensors(model(*args, **kwargs))
        found = tensors(run_graph(graph, *args, **kwargs))
        worst = max(deviation(f, e) for f, e in zip(found, expected, strict=True))
        assert worst < 1e-3
    data = json.loads(json.dumps(to_json(graph)))
    assert from_json(data, graph.constants).nodes == graph.nodes  # checks each tensor's shape too


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
