"""Attention that is written out becomes the operator, and computes the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from decibel import sqnr_db
from hypothesis import given, settings
from hypothesis import strategies as st
from running import graph_of, run_graph
from torch import Tensor, nn

import octavo
from octavo.graph.graph import Graph
from octavo.graph.passes import fold_constants, simplified, written_attention
from octavo.graph.program import run_of

B, H, L, S, C = 4, 2, 5, 7, 8
SDPA = "scaled_dot_product_attention"


def rewritten(function: Callable[..., Tensor], *args: Tensor) -> tuple[list[str], Graph]:
    """The operators of the graph, which computes what the function does."""
    graph = fold_constants(written_attention(simplified(graph_of(function, *args))))
    (have,), want = run_of(graph)(*args), function(*args)
    assert have.shape == want.shape
    assert sqnr_db(want, have) > 100
    return [node.short_op for node in graph.nodes], graph


def tensors(*sizes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=chance) for size in sizes]


def heads(seed: int = 0) -> list[Tensor]:
    """Queries, keys and values."""
    return tensors((B, H, L, C), (B, H, S, C), (B, H, S, 6), seed=seed)


SCALES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda q, k: q @ k.transpose(-2, -1),
    "queries": lambda q, k: (q * 0.3) @ k.transpose(-2, -1),
    "queries, number first": lambda q, k: (0.3 * q) @ k.mT,
    "keys": lambda q, k: q @ (k / math.sqrt(C)).transpose(2, 3),
    "transposed keys": lambda q, k: q @ (k.swapaxes(-1, -2) / math.sqrt(C)),
    "both": lambda q, k: (q / 2) @ (k / 2).permute(0, 1, 3, 2),
    "before a view": lambda q, k: (q * 0.3).view(B, H, L, C) @ k.transpose(-2, -1),
    "scores": lambda q, k: (q @ k.transpose(-2, -1)) / math.sqrt(C),
    "twice": lambda q, k: (q * 0.5 @ k.transpose(-2, -1)) * 0.5,
    "of all at once": lambda q, k: torch.bmm(
        q.reshape(-1, L, C), k.reshape(-1, S, C).transpose(1, 2)
    ).view(B, H, L, S),
    "baddbmm": lambda q, k: torch.baddbmm(
        torch.ones(B * H, 1, S).cumsum(2), q.reshape(-1, L, C), k.reshape(-1, S, C).mT, alpha=0.4
    ).view(B, H, L, S),
}
MASKS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "none": lambda s, bias, keep: s,
    "bias": lambda s, bias, keep: s + bias,
    "bias first": lambda s, bias, keep: bias.unsqueeze(0) + s,
    "mask": lambda s, bias, keep: s + (1 - keep.float()) * -1e4,
    "both": lambda s, bias, keep: s + bias + (1 - keep.float()) * torch.finfo(torch.float32).min,
    "scaled behind": lambda s, bias, keep: (s + bias) * 0.5,
    "filled": lambda s, bias, keep: s.masked_fill(~keep, -math.inf),
    "filled and bias": lambda s, bias, keep: s.masked_fill(~keep, -1e9) + bias,
    "where": lambda s, bias, keep: torch.where(keep, s, torch.finfo(torch.float32).min),
    "windows": lambda s, bias, keep: (
        (s + bias).view(B // 2, 2, H, L, S) + bias.unsqueeze(1).unsqueeze(0)
    ).view(-1, H, L, S),
}
RESULTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda s, v: s.softmax(-1) @ v,
    "float32": lambda s, v: torch.softmax(s, 3, dtype=torch.float32).to(v.dtype) @ v,
    "bmm": lambda s, v: torch.bmm(s.softmax(-1).view(-1, L, S), v.reshape(-1, S, 6)).view(
        B, H, L, 6
    ),
    "dropout": lambda s, v: nn.functional.dropout(s.softmax(-1), 0.5, training=False) @ v,
}


@given(st.sampled_from(list(SCALES)), st.sampled_from(list(MASKS)), st.sampled_from(list(RESULTS)))
@settings(max_examples=30, deadline=None)
def test_what_is_written_becomes_the_operator(scale, mask, result):
    def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, keep: Tensor) -> Tensor:
        return RESULTS[result](MASKS[mask](SCALES[scale](q, k), bias, keep), v)

    (bias,) = tensors((H, L, S), seed=1)
    keep = torch.ones(B, 1, 1, S, dtype=torch.bool)
    keep[1, ..., 3:] = False
    ops, _ = rewritten(attention, *heads(), bias, keep)
    assert ops.count(SDPA) == 1
    assert not {"matmul", "bmm", "baddbmm", "softmax"} & set(ops)


def transposed(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-2, -1)


def with_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = transposed(q, k)
    return scores.softmax(-1) @ v + scores.mean()


def with_probabilities(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    probabilities = transposed(q, k).softmax(-1)
    return probabilities @ v + probabilities.amax()


def with_sums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = transposed(q, k) + 1.0
    return (scores * 2).softmax(-1) @ v


LEFT = {
    "scores are read elsewhere": with_scores,
    "probabilities are read elsewhere": with_probabilities,
    "over targets": lambda q, k, v: transposed(q, k).softmax(-2) @ v,
    "over heads": lambda q, k, v: transposed(q, k).softmax(1) @ v,
    "a scale for each head": lambda q, k, v: (
        (transposed(q, k) * torch.arange(1.0, 3)[:, None, None]).softmax(-1) @ v
    ),
    "a computed scale": lambda q, k, v: (transposed(q, k) * q.mean()).softmax(-1) @ v,
    "scores as a divisor": lambda q, k, v: (2 / transposed(q, k)).softmax(-1) @ v,
    "times zero": lambda q, k, v: (transposed(q, k) * 0).softmax(-1) @ v,
    "a low number that others still count beside": lambda q, k, v: (
        transposed(q, k).masked_fill(k[:, :, None, :, 0] > 0, -30.0).softmax(-1) @ v
    ),
    "a function in between": lambda q, k, v: transposed(q, k).tanh().softmax(-1) @ v,
    "probabilities on the right": lambda q, k, v: v.mT @ transposed(q, k).softmax(-1).mT,
    "a number is added": with_sums,
    "sources and targets change places": lambda q, k, v: (
        transposed(q, k).reshape(B, H, S, L).softmax(-1) @ q
    ),
    "heads of the values are shared": lambda q, k, v: transposed(q, k).softmax(-1) @ v[:, :1],
    "in double": lambda q, k, v: transposed(q.double(), k.double()).softmax(-1).float() @ v,
}


@pytest.mark.parametrize("function", LEFT.values(), ids=LEFT)
def test_what_is_something_else_stays(function: Callable[..., Tensor]) -> None:
    ops, _ = rewritten(function, *heads())
    assert SDPA not in ops


def test_a_scaled_query_that_is_read_elsewhere_keeps_its_scale():
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scaled = q * 0.3
        return transposed(scaled, k).softmax(-1) @ v + scaled.mean()

    ops, graph = rewritten(attention, *heads())
    (node,) = [node for node in graph.nodes if node.short_op == SDPA]
    assert (ops.count("mul"), node.kwargs["scale"]) == (1, 1.0)


def test_attentions_behind_each_other_share_a_filled_mask():
    def attention(q: Tensor, keep: Tensor) -> Tensor:
        for _ in range(2):
            q = (transposed(q, q + 1) * 0.4).masked_fill(~keep, -math.inf).softmax(-1) @ (q * 2)
        return q

    (q,) = tensors((B, H, L, C))
    ops, _ = rewritten(attention, q, torch.ones(L, L, dtype=torch.bool).tril())
    assert (ops.count(SDPA), ops.count("where")) == (2, 2)


class Windows(nn.Module):
    """As Swin has it, over sizes that are open."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        self.joined, self.packed = joined, nn.Linear(8, 24)
        self.register_buffer("mask", torch.randn(3, 4, 4))
        self.bias = nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        rows, length = x.shape[0], x.shape[1]
        q, k, v = self.packed(x).view(rows, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        if self.joined:  # as BART and DETR
            q, k, v = (t.reshape(rows * 2, length, 4) for t in (q * 0.5, k, v))
            scores = torch.bmm(q, k.transpose(1, 2)).view(rows, 2, length, length)
            scores = scores + (1 - keep[:, None, None, :]) * -1e4
            scores = scores.view(rows * 2, length, length)
            return torch.bmm(scores.softmax(-1), v).view(rows, 2, length, 4)
        scores = (q * 0.5) @ k.transpose(-2, -1) + self.bias
        scores = scores.view(rows // 3, 3, 2, 4, 4) + self.mask[None, :, None]
        return scores.view(-1, 2, 4, 4).softmax(-1) @ v


@pytest.mark.parametrize("joined", [False, True])
def test_views_over_open_sizes(joined: bool) -> None:
    torch.manual_seed(0)
    net = Windows(joined).eval()
    graph = octavo.capture(net, (torch.randn(6, 4, 8), torch.ones(6, 4)))
    assert [n.short_op for n in graph.nodes].count(SDPA) == 1
    length = 7 if joined else 4
    x, keep = torch.randn(9, length, 8), torch.ones(9, length)
    keep[2, 3:] = 0
    assert sqnr_db(net(x, keep), run_graph(graph, x, keep)) > 100


LOWEST = torch.finfo(torch.float32).min
FILLED_LAST: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "large scores": lambda s, keep, causal: (s * 50).masked_fill(~keep, -1e9),
    "filled twice": lambda s, keep, causal: s.masked_fill(~keep, -1e9).masked_fill(~causal, -1e9),
    "lowest": lambda s, keep, causal: torch.where(causal, torch.where(keep, s, LOWEST), LOWEST),
    "added and filled": lambda s, keep, causal: (s + (1 - keep.float()) * LOWEST).masked_fill(
        ~causal, LOWEST
    ),
    "of another view": lambda s, keep, causal: (
        s.masked_fill(~keep, -1e9).view(1, B, H, L, S).masked_fill(~causal, -1e9).view(B, H, L, S)
    ),
}


@pytest.mark.parametrize("hide", FILLED_LAST.values(), ids=FILLED_LAST)
def test_a_target_all_of_whose_scores_are_low_sees_all_alike(hide):
    def attention(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, causal: Tensor) -> Tensor:
        return hide(transposed(q, k), keep, causal).softmax(-1) @ v

    keep = torch.ones(B, 1, 1, S, dtype=torch.bool)
    keep[1] = False
    causal = torch.ones(L, S, dtype=torch.bool).tril()
    ops, _ = rewritten(attention, *heads(), keep, causal)
    assert SDPA in ops


@pytest.mark.parametrize("hide", [lambda s, m: s + m, lambda s, m: s.masked_fill(m > 0, -1e9)])
def test_a_mask_without_an_axis_for_targets_stays(hide):
    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return hide(transposed(q, k), mask).softmax(-1) @ v

    ops, _ = rewritten(attention, *heads(), *tensors((S,)))
    assert SDPA not in ops


HIDING = {
    "filled": lambda scores, keep: scores.masked_fill(~keep, -math.inf),
    "added": lambda scores, keep: scores + torch.where(keep, 0.0, -math.inf),
}


@pytest.mark.parametrize("hide", HIDING.values(), ids=HIDING)
def test_a_target_that_sees_nothing_is_nan_as_it_is_written(hide):
    def attention(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        return hide(transposed(q, k), keep).softmax(-1) @ v

    keep = torch.ones(B, 1, 1, S, dtype=torch.bool)
    keep[1] = False
    graph = written_attention(simplified(graph_of(attention, *heads(), keep)))
    assert SDPA in [node.short_op for node in graph.nodes]
    (have,) = run_of(graph)(*heads(), keep)
    assert torch.equal(have.isnan(), attention(*heads(), keep).isnan())
    assert torch.allclose(have[0], attention(*heads(), keep)[0], atol=1e-6)


def test_a_constant_mask_that_leaves_something_is_only_added():
    mask = torch.full((L, S), -math.inf).triu(1)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (transposed(q, k) + mask).softmax(-1) @ v

    ops, _ = rewritten(attention, *heads())
    assert "amax" not in ops
    assert SDPA in ops
