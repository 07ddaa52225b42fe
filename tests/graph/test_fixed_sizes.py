from __future__ import annotations

import torch
from torch import Tensor, nn

import octavo
from octavo.graph.fixed_sizes import with_fixed_sizes
from octavo.graph.program import run_of
from octavo.graph.qdq import DEQUANTIZE_WEIGHT


class Heads(nn.Module):
    """Sizes are computed here, and a mask of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.layer(x).view(batch, length, 2, 4).transpose(1, 2)
        mask = torch.ones(length, length).tril()
        return (heads @ heads.transpose(-1, -2) + mask).reshape(batch, -1)


def _fixed(shape):
    q = octavo.quantize(
        Heads().eval(), calibration=[torch.randn(3, 5, 8)], target="edge", progress=False
    )
    return q.graph, with_fixed_sizes(q.graph, [shape])


def test_sizes_are_numbers_and_what_depends_on_them_is_constant():
    _, fixed = _fixed((1, 7, 8))
    assert all(node.short_op not in ("sym_size", "ones", "tril") for node in fixed.nodes)
    assert fixed.constants["tril"].equal(torch.ones(7, 7).tril())
    assert all(None not in node.meta.shape for node in fixed.nodes)
    assert fixed.node("view").args[1] == [1, 7, 2, 4]
    assert fixed.inputs[0].meta.shape == (1, 7, 8)


def test_what_is_filled_by_the_sizes_of_a_tensor_is_constant():
    class Filled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones_like(x)

    graph = octavo.capture(Filled(), (torch.randn(3, 4),))
    fixed = with_fixed_sizes(graph, [(2, 4)])
    assert [node.short_op for node in fixed.nodes] == ["add"]
    assert fixed.constants["ones_like"].equal(torch.ones(2, 4))


def test_weights_stay_integers():
    _, fixed = _fixed((1, 7, 8))
    assert any(node.op == DEQUANTIZE_WEIGHT for node in fixed.nodes)
    assert fixed.constants["layer.weight"].dtype == torch.int8


def test_it_computes_the_same():
    graph, fixed = _fixed((2, 6, 8))
    x = torch.randn(2, 6, 8)
    assert run_of(fixed)(x)[0].equal(run_of(graph)(x)[0])
