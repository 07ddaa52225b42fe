"""Products of activations, attention and norms on LiteRT."""

from __future__ import annotations

import pytest
import torch
from litert_models import SHARE
from sweeping import swept
from torch import Tensor, nn
from torch.nn import functional as F


class Products(nn.Module):
    """Queries, keys and values, and a function of them."""

    def __init__(self, function) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.function, self.head = function, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        heads = [layer(x).unflatten(-1, (2, 6)).transpose(1, 2) for layer in self.layers]
        return self.head(self.function(*heads))


VISIBLE = torch.rand(5, 5) > 0.3
VISIBLE[:, 0] = True
CASES = {
    "product": lambda q, k, v: q @ k.transpose(-1, -2) @ v,
    "attention": F.scaled_dot_product_attention,
    "causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "masked": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=VISIBLE),
    "scaled": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
    "fewer keys": lambda q, k, v: F.scaled_dot_product_attention(
        q, k[:, :1], v[:, :1], enable_gqa=True
    ),
    "layer norm": lambda q, k, v: F.layer_norm(q, (6,), torch.arange(1.0, 7), torch.ones(6)),
    "group norm": lambda q, k, v: F.group_norm(q, 2, torch.tensor([1.0, 2]), torch.ones(2)),
    "rms norm": lambda q, k, v: F.rms_norm(q, (6,), torch.arange(1.0, 7)),
}


@pytest.mark.parametrize("name", swept(CASES, ["product", "attention", "layer norm"]))
def test_it_is_the_oracles(name, agrees):
    share = 0.02 if name == "product" else SHARE  # LiteRT's own kernel, which rounds twice
    run = agrees(Products(CASES[name]), torch.randn(2, 5, 12), share=share)
    assert ("BATCH_MATMUL int8" in run.operators) == (name == "product")


def test_attention_in_float(agrees):
    run = agrees(
        Products(CASES["attention"]), torch.randn(2, 5, 12), calibration=None, mode="weight_only"
    )
    assert "SOFTMAX float32" in run.operators
