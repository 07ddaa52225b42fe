"""What is only moved is rounded once, and means the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import octavo
from octavo.graph.graph import Graph
from octavo.runtimes import lower
from octavo.runtimes.onnx.late_rounding import with_late_rounding

QUANTIZE = "octavo.quantize.default"


class Attention(nn.Module):
    """Two heads, whose outputs come together behind a transposition."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


def quantized(net: nn.Module, x: Tensor) -> Graph:
    return octavo.quantize(net, calibration=[x], target="openvino", progress=False).graph


def test_moves_are_rounded_once_and_the_result_is_the_same() -> None:
    torch.manual_seed(0)
    net, x = Attention(), torch.randn(3, 5, 8)
    before = quantized(net, x)
    after = with_late_rounding(before)
    rounded = [after.producer(n.args[0]) for n in after.nodes if n.op == QUANTIZE]
    makers = [node.short_op if node is not None else "input" for node in rounded]
    # In front of the moves behind a layer, behind those of attention.
    assert sorted(makers) == ["flatten", "input", "linear", "linear"]
    assert sum(node.op == QUANTIZE for node in before.nodes) > len(makers)
    cpu = torch.device("cpu")
    one, other = (lower(graph, "reference", cpu).run(x)[0] for graph in (before, after))
    assert torch.equal(one, other)


def test_what_is_read_before_it_is_moved_is_rounded_where_it_is_made() -> None:
    class Read(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k = self.q(x), self.k(x)
            product = q @ k.transpose(1, 2)
            mixed: Tensor = self.out(product @ self.v(x)) + product.transpose(1, 2).mean()
            return self.out(mixed.transpose(1, 2).transpose(1, 2))

    torch.manual_seed(0)
    net, x = Read(), torch.randn(3, 5, 8)
    before = quantized(net, x)
    after = with_late_rounding(before)
    cpu = torch.device("cpu")
    one, other = (lower(graph, "reference", cpu).run(x)[0] for graph in (before, after))
    assert torch.equal(one, other)
