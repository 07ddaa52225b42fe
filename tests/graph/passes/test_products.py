"""Products by other names become matrix products and linear layers, and compute the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from decibel import sqnr_db
from running import graph_of, run_graph
from torch import Tensor, nn
from torch.nn import functional as F

import octavo
from octavo.graph.passes import simplified
from octavo.graph.program import run_of
from octavo.graph.qdq import weight_behind

Function = Callable[[Any, Tensor, Tensor], Tensor]

# Of x and y, float32 [N, 4, 6]: the function, and the operators that it becomes.
BECOME: dict[str, tuple[Function, str]] = {
    "weight": (lambda m, x, y: torch.einsum("bti,io->bto", x, m.weight), "linear"),
    "weight_of_a_layer": (lambda m, x, y: torch.einsum("bti,oi->bto", x, m.turned), "linear"),
    "weight_first": (
        lambda m, x, y: torch.einsum("oi,bti->bot", m.turned, x),
        "linear transpose",
    ),
    "implied_result": (lambda m, x, y: torch.einsum("...i, io", x, m.weight), "linear"),
    "computed_weight": (lambda m, x, y: torch.einsum("bti,io->bto", x, m.weight.exp()), "linear"),
    "heads": (lambda m, x, y: torch.einsum("btd,dhe->bthe", x, m.to_heads), "linear unflatten"),
    "from_heads": (
        lambda m, x, y: torch.einsum("bthe,hed->btd", x.unflatten(2, (2, 3)), m.from_heads),
        "unflatten flatten linear",
    ),
    "activations": (lambda m, x, y: torch.einsum("bti,bsi->bts", x, y), "transpose matmul"),
    "turned_activations": (
        lambda m, x, y: torch.einsum("bti,bsi->sbt", x, y),
        "transpose matmul permute",
    ),
    "rows_of_two_axes": (
        lambda m, x, y: torch.einsum("bhwc,bkc->bhwk", x.unflatten(1, (2, 2)), y),
        "unflatten flatten transpose matmul",
    ),
    "rows_in_pairs": (
        lambda m, x, y: torch.einsum("...ij,...kj->...ik", x[:, None], y[:, None]),
        "unsqueeze transpose matmul",
    ),
    "moves": (lambda m, x, y: torch.einsum("bti->tib", x), "permute"),
    "tensordot": (lambda m, x, y: torch.tensordot(x, m.weight, dims=1), "linear"),
    "tensordot_of_two_axes": (
        lambda m, x, y: torch.tensordot(x.unflatten(2, (2, 3)), m.from_heads, dims=2),
        "unflatten flatten linear",
    ),
    "bilinear": (
        lambda m, x, y: F.bilinear(x, y, m.cube, m.bias),
        "unsqueeze mul flatten linear",
    ),
    "mm": (lambda m, x, y: torch.mm(x[:, 0], y[0].t()), "select t matmul"),
    "addmm": (
        lambda m, x, y: torch.addmm(m.bias, x[:, 0], m.weight, alpha=2.0, beta=0.5),
        "select linear mul add",
    ),
    "baddbmm": (
        lambda m, x, y: torch.baddbmm(y[:, :, :4], x, y.transpose(1, 2), alpha=0.5, beta=2),
        "slice transpose bmm mul add",
    ),
    "baddbmm_alone": (
        lambda m, x, y: torch.baddbmm(y[:, :, :4], x, y.transpose(1, 2), beta=0),
        "transpose bmm",
    ),
}
STAY: dict[str, Function] = {
    "diagonal": lambda m, x, y: torch.einsum("btt->bt", x[:, :, :4]),
    "sum": lambda m, x, y: torch.einsum("bti,bsj->btj", x, y),
    "each_with_each": lambda m, x, y: torch.einsum("bt,bi->bti", x[:, :, 0], y[:, 0]),
    "of_rows": lambda m, x, y: torch.einsum("bti,bti->bt", x, y),
    "vector": lambda m, x, y: torch.einsum("bti,i->bt", x, m.weight[:, 0]),
    "broadcast": lambda m, x, y: torch.einsum("bti,bsi->bts", x, y[:, :, :1]),
    "three": lambda m, x, y: torch.einsum("bti,io,bso->bts", x, m.weight, y[:, :, :4]),
}


class Weights:
    def __init__(self) -> None:
        chance = torch.Generator().manual_seed(0)
        for name, size in {
            "weight": (6, 4),
            "turned": (4, 6),
            "bias": (4,),
            "to_heads": (6, 2, 3),
            "from_heads": (2, 3, 5),
            "cube": (4, 6, 6),
        }.items():
            setattr(self, name, 0.3 * torch.randn(size, generator=chance))


def simple(function: Function) -> set[str]:
    """The operators that a function becomes, which compute the same."""
    weights, x, y = Weights(), torch.randn(3, 4, 6), torch.randn(3, 4, 6)

    def of_inputs(x: Tensor, y: Tensor) -> Tensor:
        return function(weights, x, y)

    graph = simplified(graph_of(of_inputs, x, y))
    (found,) = run_of(graph)(x, y)
    torch.testing.assert_close(found, of_inputs(x, y), rtol=1e-5, atol=1e-5)
    return {node.short_op for node in graph.nodes}


@pytest.mark.parametrize("name", BECOME)
def test_what_they_become(name: str) -> None:
    function, operators = BECOME[name]
    assert simple(function) == set(operators.split())


@pytest.mark.parametrize("name", STAY)
def test_what_is_no_product_of_two_matrices_stays(name: str) -> None:
    assert "einsum" in simple(STAY[name])


class Segments(nn.Module):
    """As in mask transformers: a mask over the image for each query."""

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        return torch.einsum("bqc,bchw->bqhw", queries, image)


def test_images_of_any_size() -> None:
    graph = octavo.capture(Segments(), (torch.randn(2, 3, 6), torch.randn(2, 6, 5, 7)))
    assert "matmul" in {node.short_op for node in graph.nodes}
    assert graph.inputs[1].meta.shape[2:] == (None, None)
    given = torch.randn(3, 3, 6), torch.randn(3, 6, 4, 9)
    torch.testing.assert_close(run_graph(graph, *given), Segments()(*given), rtol=1e-5, atol=1e-5)


class Attention(nn.Module):
    """Of two heads, all of it written as contractions."""

    def __init__(self) -> None:
        super().__init__()
        for name in "qkv":
            self.register_parameter(name, nn.Parameter(0.3 * torch.randn(8, 2, 4)))
        self.out = nn.Parameter(0.3 * torch.randn(2, 4, 8))

    def heads(self, x: Tensor) -> Iterator[Tensor]:
        return (torch.einsum("btd,dhe->bthe", x, getattr(self, name)) for name in "qkv")

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k) * 0.5
        y = torch.einsum("bhqk,bkhe->bqhe", scores.softmax(-1), v)
        return torch.einsum("bqhe,hed->bqd", y, self.out)


def test_attention_by_contractions_is_quantized_as_attention() -> None:
    torch.manual_seed(0)
    model, data = Attention().eval(), [torch.randn(4, 7, 8) for _ in range(4)]
    q = octavo.quantize(model, calibration=data, target="x86", progress=False)
    ops = [node.short_op for node in q.graph.nodes]
    assert not {"einsum", "matmul", "softmax"} & set(ops)
    assert ops.count("linear") == 4
    fresh = torch.randn(5, 9, 8)
    with torch.no_grad():
        exact = model(fresh)
        found, oracle = q(fresh), q.lower("reference")(fresh)
    assert sqnr_db(exact, found) > 22
    assert sqnr_db(oracle, found) > 45


class ByRows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor([[1.0, -0.5], [0.25, 2.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,oi->bo", x, self.rows)


def test_the_integers_of_a_weight() -> None:
    """Under its own name: a scale of 1/127 for the first row, and of 2/127 for the second."""
    q = octavo.quantize(ByRows(), torch.ones(2, 2), mode="weight_only", target="x86")
    (linear,) = [node for node in q.graph.nodes if node.short_op == "linear"]
    weight = weight_behind(q.graph, linear.args[1])
    assert weight is not None
    assert weight.name == "rows"
    assert weight.integers.tolist() == [[127, -64], [16, 127]]
