"""Operators that a graph cannot have are computed where they depend on constants alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from running import run_graph
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import octavo
from octavo.errors import CaptureError
from octavo.graph.capture.capture import capture


class Net(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function, self.a = function, nn.Linear(16, 16)
        self.m = nn.Parameter(torch.eye(16) + 0.1 * torch.rand(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(16, 16)),
    "inverse": lambda: Net(lambda m, x: m.a(x @ torch.inverse(m.m))),
    "exponential": lambda: Net(lambda m, x: m.a(x @ torch.matrix_exp(m.m - m.m.T))),
    "window": lambda: Net(lambda m, x: m.a(x * torch.hann_window(16))),
    "table": lambda: Net(lambda m, x: m.a(x * torch.linspace(0, 1, 16).sinc())),
    "one of several": lambda: Net(lambda m, x: m.a(x @ torch.linalg.qr(m.m)[0])),
    "products": lambda: Net(lambda m, x: m.a(x @ torch.kron(m.m[:4, :4], m.m[:4, :4]))),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_what_depends_on_constants_is_one(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    graph = capture(model, torch.randn(4, 16))
    assert {node.short_op for node in graph.nodes} <= {"linear", "mul", "matmul"}
    for batch in (1, 3):
        x = torch.randn(batch, 16)
        with torch.no_grad():
            torch.testing.assert_close(run_graph(graph, x), model(x), rtol=1e-4, atol=1e-5)


def test_it_is_quantized_and_its_tensors_are_its_own() -> None:
    torch.manual_seed(0)
    model, x = MODELS["exponential"]().eval(), torch.randn(8, 16)
    with torch.no_grad():
        expected = model(x)
    q = octavo.quantize(model, x, mode="weight_only", progress=False)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert 20 * torch.log10(expected.norm() / (q(x) - expected).norm()) > 35


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m, x: m.a(x @ torch.inverse(x)), "is not among the operators that Octavo runs"),
        (lambda m, x: m.a(x + torch.randn(16)), "which draws random numbers"),
        (lambda m, x: m.a(x + torch.randn_like(x)), "make the noise an argument of forward"),
    ],
    ids=["of an input", "by chance", "by chance, of an input's shape"],
)
def test_what_does_not_is_refused(function: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(Net(function), torch.randn(16, 16))
