"""In-place operators: the graph has none, and returns what the model does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from running import run_graph
from torch import Tensor, nn

from octavo.errors import CaptureError
from octavo.graph import operators
from octavo.graph.capture.capture import capture
from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.passes.functionalize import is_safe, make_functional


class Net(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def relu_in_place(m: Net, x: Tensor) -> Tensor:
    return torch.relu_(m.conv(x)) * 2


def chain(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    y += 1
    y.mul_(2).clamp_(max=0.5)
    return y - y.abs()


def on_the_input(m: Net, x: Tensor) -> Tensor:
    x.sub_(0.5).div_(0.2)
    return m.conv(x)


def dropout_in_place(m: Net, x: Tensor) -> Tensor:
    return nn.functional.dropout(m.conv(x), 0.5, m.training, inplace=True)


def filled_and_copied(m: Net, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y.copy_(x)
    z = torch.ones_like(x).zero_().add_(y)
    return m.conv(z.masked_fill_(z > 1, 1.0))


def a_copy_is_another_tensor(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = y.clone()
    z.relu_()
    return y + z


def view_written(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    y.view(-1).relu_()
    return y


def base_written(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    flat = y.flatten(1)
    y.relu_()
    return flat


def slices_assigned(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    y[:, 0] = 0
    y[:, 1] += 1
    y[:, 2].mul_(2)
    y[:, 3] = y[:, 1]
    return y


def chunk_written(m: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.conv(x)
    first, second = y.chunk(2, 1)
    first.relu_()
    return y + 1, second


def permuted(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    y.permute(0, 2, 3, 1).add_(torch.arange(4.0))
    return y


def same_dtype_is_the_same_tensor(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    y.to(torch.float32).relu_()
    y.contiguous().add_(1)
    return y


def unfolded(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    y.unflatten(1, (2, 2)).diagonal(0, 1, 2).mul_(3)
    return y


def input_through_a_view(m: Net, x: Tensor) -> Tensor:
    x[:, 0] = 0.5
    return m.conv(x)


def dropout_is_the_same_tensor(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    nn.functional.dropout(y, 0.5, m.training).relu_()
    return y


SAFE = [
    relu_in_place,
    chain,
    on_the_input,
    dropout_in_place,
    filled_and_copied,
    a_copy_is_another_tensor,
    same_dtype_is_the_same_tensor,
]
UNSAFE = [
    view_written,
    base_written,
    slices_assigned,
    chunk_written,
    permuted,
    unfolded,
    input_through_a_view,
]


@pytest.mark.parametrize("function", SAFE + UNSAFE, ids=lambda f: f.__name__)
def test_the_graph_returns_what_the_model_does(function: Callable[[Net, Tensor], Any]) -> None:
    model = Net(function).eval()
    x = torch.randn(2, 3, 6, 6)
    before = x.clone()
    graph = capture(model, x)
    assert torch.equal(x, before)
    for batch in (x, torch.randn(5, 3, 6, 6)):
        with torch.no_grad():
            expected = model(batch.clone())
        given = batch.clone()
        torch.testing.assert_close(run_graph(graph, given), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(given, batch)
    assert not [node for node in graph.nodes if writes(node)]


def writes(node: Node) -> bool:
    schema = getattr(operators.resolve(node.op), "_schema", None)
    return schema is not None and schema.is_mutable


@pytest.mark.parametrize("function", SAFE + UNSAFE, ids=lambda f: f.__name__)
def test_shared_memory_that_is_read_again_is_noticed(
    function: Callable[[Net, Tensor], Any],
) -> None:
    with torch.no_grad():
        program = torch.export.export(Net(function).eval(), (torch.randn(2, 3, 6, 6),))
    assert is_safe(program) == (function in SAFE)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x * self.scale


def test_what_torch_export_would_get_wrong_is_an_error() -> None:
    """It takes the result of dropout for another tensor; eager mode hands out the argument."""
    with pytest.raises(CaptureError, match=r"'dropout' is changed in place, .* change a copy"):
        capture(Net(dropout_is_the_same_tensor), torch.randn(2, 3, 6, 6))


def test_a_buffer_that_is_written_is_not_safe() -> None:
    assert not is_safe(torch.export.export(Counter(), (torch.randn(2, 3),)))


META = TensorMeta((None, 3), "float32")


def test_later_reads_see_the_written_value() -> None:
    nodes = (
        Node("a", "aten.mul.Tensor", (Ref("x"), 2.0), meta=META),
        Node("b", "aten.add_.Tensor", (Ref("a"), Ref("x")), {"alpha": 3}, META),
        Node("c", "aten.relu_.default", (Ref("a"),), meta=META),
        Node("d", "aten.cat.default", ([Ref("a"), Ref("b"), Ref("c")],), meta=META),
    )
    graph = Graph((Input("x", META),), {}, nodes, {"x": Ref("x")}, (Ref("a"), Ref("d")))
    functional = make_functional(graph)
    assert [node.op for node in functional.nodes[:3]] == [
        "aten.mul.Tensor",
        "aten.add.Tensor",
        "aten.relu.default",
    ]
    assert functional.nodes[1].args == (Ref("a"), Ref("x"))
    assert functional.nodes[1].kwargs == {"alpha": 3}
    assert functional.nodes[2].args == (Ref("b"),)
    assert functional.nodes[3].args == ([Ref("c"), Ref("c"), Ref("c")],)
    assert functional.outputs == (Ref("c"), Ref("d"))


def test_a_graph_without_writes_stays_as_it_is() -> None:
    nodes = (Node("a", "aten._to_copy.default", (Ref("x"),), meta=META),)
    graph = Graph((Input("x", META),), {}, nodes, {"x": Ref("x")}, Ref("a"))
    assert make_functional(graph) == graph
