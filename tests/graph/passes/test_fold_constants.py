"""What depends on constants alone is computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from running import run_graph
from torch import Tensor, nn

from octavo.graph.capture.capture import capture
from octavo.graph.graph import Graph


class Net(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 6)
        self.bn = nn.BatchNorm1d(6)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def captured(function: Callable[[Any, Tensor], Tensor]) -> tuple[Graph, list[str]]:
    """The graph, which computes what the model does, and its operators."""
    model = Net(function).eval()
    graph = capture(model, torch.randn(2, 4))
    x = torch.randn(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(run_graph(graph, x), model(x), rtol=1e-4, atol=1e-6)
    return graph, [node.short_op for node in graph.nodes]


def split_weight(m: Any, x: Tensor) -> Tensor:
    one, other = m.fc.weight.chunk(2)
    return F.linear(x, one) + F.linear(x, other)


FOLDED = {
    "scaled weight": (lambda m, x: F.linear(x, m.fc.weight * 2), ["linear"]),
    "standardized weight": (lambda m, x: F.linear(x, F.layer_norm(m.fc.weight, [4])), ["linear"]),
    "a chain": (lambda m, x: x @ (m.fc.weight.t().exp() + 1), ["linear"]),
    "parts of a weight": (split_weight, ["linear", "linear", "add"]),
    "made in forward": (lambda m, x: x + torch.arange(4).to(x.dtype), ["add"]),
    "behind a batch norm": (lambda m, x: m.bn(F.linear(x, m.fc.weight * 2)), ["linear"]),
    "returned": (lambda m, x: m.fc.weight + 1, []),
}


@pytest.mark.parametrize(("function", "ops"), FOLDED.values(), ids=FOLDED)
def test_folded(function: Callable[[Any, Tensor], Tensor], ops: list[str]) -> None:
    graph, found = captured(function)
    assert found == ops
    own = {tensor.untyped_storage().data_ptr() for tensor in graph.constants.values()}
    assert len(own) == len(graph.constants)


KEPT = {
    "of a size": (lambda m, x: m.fc(x) * torch.ones(x.shape[0], 1), "ones"),
    "much larger than its source": (
        lambda m, x: (m.fc.bias.expand(2**15, 6) * x.sum()).sum(0),
        "expand",
    ),
}


@pytest.mark.parametrize(("function", "op"), KEPT.values(), ids=KEPT)
def test_kept(function: Callable[[Any, Tensor], Tensor], op: str) -> None:
    assert op in captured(function)[1]


def test_chance_is_not_folded() -> None:
    graph = capture(
        Net(lambda m, x: x @ F.dropout(m.fc.weight, 0.5, training=True).t()), torch.randn(2, 4)
    )
    assert "dropout" in [node.short_op for node in graph.nodes]


def test_a_folded_weight_has_the_name_of_what_made_it() -> None:
    graph, _ = captured(lambda m, x: F.linear(x, m.fc.weight * 2))
    assert list(graph.constants) == ["mul"]


def test_the_models_own_tensors_are_not_shared() -> None:
    model = Net(lambda m, x: x @ m.fc.weight.t()).eval()
    graph = capture(model, torch.randn(2, 4))
    (folded,) = graph.constants.values()
    assert folded.data_ptr() != model.fc.weight.data_ptr()
    assert folded.is_contiguous()
