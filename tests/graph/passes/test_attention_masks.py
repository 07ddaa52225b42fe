"""Computed boolean masks become masks to add, made once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from running import run_graph
from torch import nn

import octavo


class Twice(nn.Module):
    """Two attentions with one mask; a row without any source is left out of the test's masks."""

    def forward(self, x, keep):
        mask = keep[:, None, None, :] & torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
        for _ in range(2):
            x = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
        return x


def test_one_mask_is_made_for_all_that_use_it():
    torch.manual_seed(0)
    x, keep = torch.randn(3, 2, 6, 4), torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 1, 1]] * 2)
    keep = keep.bool()[:3]
    graph = octavo.capture(Twice(), (x, keep))
    masks = [n for n in graph.nodes if n.op == "aten.where.Scalar"]
    assert [mask.meta.dtype for mask in masks] == ["float32"]
    attentions = [n for n in graph.nodes if n.short_op == "scaled_dot_product_attention"]
    assert [n.args[3].name for n in attentions] == [masks[0].name] * 2
    assert torch.allclose(run_graph(graph, x, keep), Twice()(x, keep), atol=1e-6)


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(6, 6, dtype=torch.bool).tril())

    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, attn_mask=self.mask)


def test_a_constant_mask_stays_boolean():
    graph = octavo.capture(Causal(), torch.randn(3, 2, 6, 4))
    assert [t.dtype for t in graph.constants.values()] == [torch.bool]
    assert not any(n.op == "aten.where.Scalar" for n in graph.nodes)
