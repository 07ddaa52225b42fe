"""Products with constant matrices become linear layers, and nothing else does."""

from __future__ import annotations

import pytest
import torch
from running import run_graph
from torch import nn

import octavo


class Product(nn.Module):
    def __init__(self, compute) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))
        self.bias = nn.Parameter(torch.randn(4))
        self.compute = compute

    def forward(self, x):
        return self.compute(self, x)


AS_LINEAR = {
    "matmul": (lambda m, x: x @ m.weight, (3, 5, 6)),
    "mm": (lambda m, x: torch.mm(x, m.weight), (3, 6)),
    "addmm": (lambda m, x: torch.addmm(m.bias, x, m.weight), (3, 6)),
    "scaled": (lambda m, x: torch.addmm(m.bias, x, m.weight, alpha=2.0), (3, 6)),
    "used twice": (lambda m, x: (x @ m.weight) + (2 * x) @ m.weight, (3, 6)),
}


@pytest.mark.parametrize("name", AS_LINEAR)
def test_a_product_with_a_constant_is_a_linear_layer(name):
    compute, shape = AS_LINEAR[name]
    model, x = Product(compute), torch.randn(*shape)
    graph = octavo.capture(model, x)
    assert {n.short_op for n in graph.nodes} <= {"linear", "add", "mul"}
    assert any(n.short_op == "linear" for n in graph.nodes)
    with torch.no_grad():
        assert torch.allclose(run_graph(graph, x), model(x), atol=1e-5)


OTHERS = {
    "of two activations": (lambda m, x: x @ x.transpose(-2, -1), (3, 5, 6)),
    "constant first": (lambda m, x: m.weight.T @ x, (3, 6, 5)),
    "vector": (lambda m, x: x @ m.weight[:, 0], (3, 6)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_products_stay(name):
    compute, shape = OTHERS[name]
    graph = octavo.capture(Product(compute), torch.randn(*shape))
    assert not any(n.short_op == "linear" for n in graph.nodes)
