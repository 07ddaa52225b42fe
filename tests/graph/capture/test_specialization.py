"""What export took for granted about sizes: a call is right, or it is an error."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from running import run_graph
from torch import Tensor, nn

import octavo
from octavo.errors import InputError
from octavo.graph.capture.capture import capture
from octavo.graph.graph import Graph
from octavo.runtimes.examples import random_inputs

ANY = set(range(1, 10))


class Net(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.a, self.rows = function, nn.Linear(8, 8), 4

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(self, *tensors)


def captured(function: Callable[..., Any], inputs: int = 1, batch: int = 4) -> tuple[Net, Graph]:
    torch.manual_seed(0)
    model = Net(function).eval()
    return model, capture(model, tuple(torch.randn(batch, 8) for _ in range(inputs)))


def answers(model: nn.Module, graph: Graph, *batches: int) -> bool:
    """Whether the graph takes inputs of these batch sizes; what it returns is then right."""
    tensors = [torch.randn(batch, 8) for batch in batches]
    try:
        found = run_graph(graph, *tensors)
    except InputError:
        return False
    with torch.no_grad():
        torch.testing.assert_close(found, model(*tensors))
    return True


def one_is_another(m: Net, x: Tensor) -> Tensor:
    return m.a(x).squeeze(0) * 3 if x.shape[0] == 1 else m.a(x)


FIXED: dict[str, Callable[..., Any]] = {
    "len": lambda m, x: m.a(x) / math.sqrt(len(x)),
    "int": lambda m, x: m.a(x) + int(x.shape[0]),
    "zeros": lambda m, x: m.a(x) + torch.zeros(len(x), 8),
    "rows": lambda m, x: torch.stack([m.a(row) for row in x]),
    "range": lambda m, x: torch.stack([m.a(x)[i] for i in range(x.shape[0])]),
    "reshape": lambda m, x: m.a(x).reshape(4, -1),
    "attribute": lambda m, x: m.a(x).view(m.rows, -1),
    "equal": lambda m, x: m.a(x) if x.shape[0] == 4 else x,
    "list": lambda m, x: m.a(x) * [1.0, 2.0, 3.0, 4.0, 5.0][x.shape[0]],
}
OPEN: dict[str, tuple[Callable[..., Any], set[int]]] = {
    "above": (lambda m, x: F.relu(m.a(x)) if x.shape[0] > 3 else m.a(x), ANY - {1, 2, 3}),
    "below": (lambda m, x: F.relu(m.a(x)) if x.shape[0] < 6 else m.a(x), {1, 2, 3, 4, 5}),
    "not one size": (lambda m, x: m.a(x) if x.shape[0] != 6 else x, ANY - {6}),
    "even": (lambda m, x: F.relu(m.a(x)) if x.shape[0] % 2 == 0 else m.a(x), {2, 4, 6, 8}),
    "assertion": (lambda m, x: m.a(x) if torch._check(x.shape[0] < 9) is None else x, ANY - {9}),
    "pairs": (lambda m, x: m.a(x).reshape(-1, 2, 8).sum(1), {2, 4, 6, 8}),
    "halves": (lambda m, x: m.a(x).reshape(2, x.shape[0] // 2, 8), {2, 4, 6, 8}),
    "parts": (lambda m, x: torch.cat([m.a(part) for part in x.split(2)]), {3, 4}),
    "chunks": (lambda m, x: torch.cat([m.a(part) for part in x.chunk(2)]), ANY - {1}),
    "one is another": (one_is_another, ANY - {1}),
    "one alone": (lambda m, x: m.a(x) + (x[:1] if x.shape[0] > 1 else 7), ANY - {1}),
    "squeeze": (lambda m, x: m.a(x).squeeze(), ANY),
    "size": (lambda m, x: m.a(x) * x.shape[0] + torch.zeros(x.shape[0], 1), ANY),
    "truth": (lambda m, x: m.a(x) if x.shape[0] else x, ANY),
    "first rows": (lambda m, x: m.a(x)[: min(x.shape[0], 3)], ANY),
    "mean": (lambda m, x: m.a(x) - x.sum(0) / x.shape[0], ANY),
}


@pytest.mark.parametrize("function", FIXED.values(), ids=FIXED)
def test_a_size_that_is_part_of_the_graph_is_declared(function: Callable[..., Any]) -> None:
    model, graph = captured(function)
    assert graph.inputs[0].meta.shape == (4, 8)
    assert {n for n in ANY if answers(model, graph, n)} == {4}
    line = rf"test_specialization\.py:{function.__code__.co_firstlineno} \(<lambda>\)"
    with pytest.raises(InputError, match=rf"shape\[0\] == 4 is fixed: .* at capture/{line}"):
        run_graph(graph, torch.randn(5, 8))


@pytest.mark.parametrize(("function", "sizes"), OPEN.values(), ids=OPEN)
def test_a_size_that_takes_another_way_is_refused(
    function: Callable[..., Any], sizes: set[int]
) -> None:
    model, graph = captured(function)
    assert graph.inputs[0].meta.shape == (None, 8)
    assert {n for n in ANY if answers(model, graph, n)} == sizes


def test_one_sample_is_tried_and_refused_where_it_is_special() -> None:
    model, graph = captured(one_is_another, batch=2)
    assert {n for n in ANY if answers(model, graph, n)} == ANY - {1}
    with pytest.raises(InputError, match=r"for tensors_0\.shape\[0\] != 1: the model takes ano"):
        run_graph(graph, torch.randn(1, 8))


@pytest.mark.parametrize("function", [one_is_another, FIXED["len"], FIXED["range"]])
def test_an_example_of_one_sample_that_is_special_stands_for_one(
    function: Callable[..., Any],
) -> None:
    model, graph = captured(function, batch=1)
    assert graph.inputs[0].meta.shape == (1, 8)
    assert {n for n in ANY if answers(model, graph, n)} == {1}
    with pytest.raises(InputError, match="forward treats a single sample differently"):
        run_graph(graph, torch.randn(2, 8))


def test_an_example_of_one_sample_stands_for_any_number() -> None:
    model, graph = captured(lambda m, x: m.a(x), batch=1)
    assert {n for n in ANY if answers(model, graph, n)} == ANY


TWO: dict[str, tuple[Callable[..., Any], set[tuple[int, int]]]] = {
    "sum": (lambda m, x, y: m.a(x) + y, {(1, 1), (2, 2), (3, 3)}),
    "product": (lambda m, x, y: m.a(x) @ y.T, {(a, b) for a in (1, 2, 3) for b in (1, 2, 3)}),
    "one unused": (lambda m, x, y: m.a(x), {(a, b) for a in (1, 2, 3) for b in (1, 2, 3)}),
    "compared": (
        lambda m, x, y: m.a(x) if x.shape == y.shape else m.a(x) * 2,
        {(1, 1), (2, 2), (3, 3)},
    ),
    "larger": (
        lambda m, x, y: m.a(x) if x.shape[0] >= y.shape[0] else m.a(x) * 2,
        {(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)},
    ),
    "second of one": (
        lambda m, x, y: m.a(x) * (2 if y.shape[0] == 1 else 1),
        {(a, b) for a in (1, 2, 3) for b in (2, 3)},
    ),
}


@pytest.mark.parametrize(("function", "sizes"), TWO.values(), ids=TWO)
def test_sizes_of_two_inputs(function: Callable[..., Any], sizes: set[tuple[int, int]]) -> None:
    model, graph = captured(function, inputs=2)
    pairs = {(a, b) for a in (1, 2, 3) for b in (1, 2, 3)}
    assert {pair for pair in pairs if answers(model, graph, *pair)} == sizes


def test_a_usual_network_needs_nothing_but_its_width() -> None:
    conv = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    for model, example, described, guard in (
        (conv, torch.randn(2, 3, 8, 8), "[N, 3, input_2, input_3]", "input.shape[1] == 3"),
        (nn.LSTM(4, 5, batch_first=True), torch.randn(2, 6, 4), "[N, input_1, 4]", "[2] == 4"),
        (layer, torch.randn(2, 5, 16), "[N, src_1, 16]", "src.shape[2] == 16"),
    ):
        graph = capture(model, example)
        assert str(graph.inputs[0]) == f"float32{described}"
        assert len(graph.guards) == 1
        assert guard in str(graph.guards[0])


def test_a_guard_holds_in_every_stage(tmp_path: Any) -> None:
    model = Net(lambda m, x: F.relu(m.a(x)) if x.shape[0] % 2 == 0 else m.a(x)).eval()
    q = octavo.quantize(model, calibration=[torch.randn(4, 8)] * 2, progress=False)
    q.save(tmp_path / "model.octavo")
    trained = octavo.prepare_qat(model, torch.randn(4, 8))
    wanted = r"input 'tensors_0' is \[3, 8\]; the model was captured for .* % 2 == 0"
    for one in (q, octavo.load(tmp_path / "model.octavo"), q.lower("reference"), trained):
        assert one(torch.randn(6, 8)).shape == (6, 8)
        with pytest.raises(InputError, match=wanted):
            one(torch.randn(3, 8))
    with pytest.raises(octavo.OctavoError, match=re.compile(wanted)):
        octavo.quantize(model, torch.randn(4, 8), calibration=[torch.randn(3, 8)], progress=False)
    with pytest.raises(octavo.OctavoError, match=re.compile(wanted)):
        octavo.compare(model, q, [torch.randn(3, 8)], progress=False)
    with pytest.raises(InputError, match=wanted):
        random_inputs(q.graph, batch=3)


def test_a_check_on_values_is_told() -> None:
    def checking(m: Net, x: Tensor) -> Tensor:
        torch._assert_async((x < 100).all())
        return m.a(x)  # type: ignore[no-any-return]

    with pytest.warns(octavo.OctavoWarning, match=r"Net checks values \(.*test_specialization.py:"):
        captured(checking)
