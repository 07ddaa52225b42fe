"""Writing into a part of a tensor: values and gradients are the model's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.graph.calls import flatten_call
from octavo.graph.capture.capture import capture
from octavo.graph.graph import Graph
from octavo.graph.program import compile_steps, steps_of


class Net(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function, self.a = function, nn.Linear(6, 6)
        self.two = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.a(x) * 1.0, x)


def put(y: Tensor, key: Any, value: Any) -> Tensor:
    y[key] = value
    return y


ALL, FIRST = slice(None), slice(0, 2)
WRITES: dict[str, Callable[[Net, Tensor, Tensor], Tensor]] = {
    "slice": lambda m, y, x: put(y, (..., FIRST), y[..., :2] * 2 - 0.5),
    "number": lambda m, y, x: put(y, (..., FIRST), 0.5),
    "column": lambda m, y, x: put(y, (ALL, 1), y[:, 2] * 3),
    "row": lambda m, y, x: put(y, 0, y[1] * 3),
    "one for all rows": lambda m, y, x: put(y, (ALL, FIRST), m.two),
    "another dtype": lambda m, y, x: put(y, (ALL, FIRST), y[:, 2:4].double() * 2),
    "integers": lambda m, y, x: put(y, (ALL, FIRST), (x[:, :2] * 3).long()),
    "every other": lambda m, y, x: put(y, (..., slice(0, 6, 2)), y[..., 1::2] * 2),
    "mask": lambda m, y, x: put(y, y > 0, 0.1),
    "indices": lambda m, y, x: put(y, (ALL, torch.tensor([0, 2])), y[:, [1, 3]] * 2),
    "swapped": lambda m, y, x: put(y, (ALL, FIRST), y[:, 2:4].clone()),
    "parts of zeros": lambda m, y, x: put(torch.zeros_like(y), (ALL, slice(0, 3)), y[:, 3:]),
    "added to a part": lambda m, y, x: (y[:, :2].add_(1), y.mul(2))[1],
    "through a view": lambda m, y, x: (y.view(-1, 2, 3)[:, 0].mul_(3), y)[1],
    "through a transpose": lambda m, y, x: (y.t()[:2].copy_(y.t()[2:4]), y)[1],
    "diagonal": lambda m, y, x: (y[:2, :2].diagonal().copy_(m.two), y)[1],
    "filled": lambda m, y, x: (y[:, :2].fill_(2.0), y)[1],
    "zeroed": lambda m, y, x: (y[:, :2].zero_(), y)[1],
}


def results(model: nn.Module, graph: Graph, x: Tensor) -> tuple[Tensor, ...]:
    """Of the graph, with the model's own parameters, which take a gradient."""
    own = dict(model.named_parameters())
    constants = {name: own.get(name, tensor) for name, tensor in graph.constants.items()}
    inputs = [given.name for given in graph.inputs]
    run = compile_steps(inputs, steps_of(graph), graph.output_names(), constants)
    return tuple(run(*flatten_call(graph, (x,), {})))


class All(Net):
    """All of the functions, each on a tensor of its own: captured once for all."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [function(self, self.a(x) * 1.0, x) for function in WRITES.values()]


@pytest.fixture(scope="module")
def captured() -> tuple[All, Graph, Tensor]:
    torch.manual_seed(0)
    model, x = All(WRITES["slice"]).eval(), torch.randn(4, 6)
    return model, capture(model, x), x


@pytest.mark.parametrize("place", range(len(WRITES)), ids=list(WRITES))
def test_values_and_gradients_are_the_models(
    captured: tuple[All, Graph, Tensor], place: int
) -> None:
    model, graph, x = captured
    assert "copy" not in {node.short_op for node in graph.nodes}
    exact, made = model(x)[place], results(model, graph, x)[place]
    torch.testing.assert_close(made, exact)
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected = torch.autograd.grad(exact.square().sum(), parameters, allow_unused=True)
    found = torch.autograd.grad(made.square().sum(), parameters, allow_unused=True)
    for name, one, wanted in zip(names, found, expected, strict=True):
        assert (one is None) == (wanted is None), name
        if wanted is not None:
            torch.testing.assert_close(one, wanted)


def test_it_trains_and_its_layers_are_ranked() -> None:
    torch.manual_seed(0)
    model, x = Net(WRITES["slice"]).eval(), torch.randn(8, 6)
    with torch.no_grad():
        expected = model(x)
    trained = octavo.prepare_qat(model, x)
    trained(x).square().sum().backward()
    assert all(p.grad is not None for name, p in trained.named_parameters() if "a." in name)
    found = octavo.sensitivity(model, calibration=[x], data=[x], progress=False)
    assert [row.layer for row in found.layers] == ["a"]
    q = octavo.quantize(model, calibration=[x], target=octavo.host_target(), progress=False)
    assert 20 * torch.log10(expected.norm() / (q(x) - expected).norm()) > 35
