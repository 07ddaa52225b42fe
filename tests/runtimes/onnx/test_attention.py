"""Attention as ONNX: what torch gives, and what the rounded one of Octavo gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attention

MASK = torch.ones(5, 7, dtype=torch.bool).tril(2)
# What follows queries, keys and values: mask, causal, scale, whether heads share keys.
FORMS = {
    "plain": (None, False, None, False),
    "scaled": (None, False, 0.3, False),
    "causal": (None, True, None, False),
    "masked": (MASK, False, None, False),
    "added": (MASK.float() - 1, False, None, False),
    "shared keys": (None, False, None, True),
}


def tensors(form, *, heads=4):
    shared = 2 if FORMS[form][3] else heads
    shapes = (heads, 5, 8), (shared, 7, 8), (shared, 7, 6)
    return [torch.randn(2, *shape) for shape in shapes]


@pytest.mark.parametrize("form", FORMS)
def test_attention(form, agrees):
    mask, causal, scale, shared = FORMS[form]
    agrees(
        lambda q, k, v: attention(q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=shared),
        *tensors(form),
    )


@pytest.mark.parametrize("form", FORMS)
def test_rounded_attention(form, agrees):
    """Equal but for probabilities that lie between two steps."""
    agrees(
        lambda q, k, v: torch.ops.octavo.attention(q, k, v, *FORMS[form], 255),
        *tensors(form),
        atol=1e-4,
    )


def test_a_mask_of_each_sample(agrees):
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    agrees(
        lambda x, mask: attention(x, x, x, mask[:, None, None] & mask[:, None, :, None]),
        torch.randn(2, 3, 5, 8),
        mask | torch.eye(5)[0].bool(),
    )


def test_a_target_that_sees_nothing_gets_zeros(agrees):
    seen = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 1, 1, 1]]).bool()
    added = torch.where(seen, 0.5, -torch.inf)
    for mask in (seen, added):
        agrees(
            lambda x, mask: attention(x, x, x, mask[:, None, None].expand(-1, 1, 5, -1)),
            torch.randn(2, 3, 5, 8),
            mask,
        )


def test_samples_as_the_axis_that_attends(agrees):
    """The causal mask is as large as the batch."""
    agrees(
        lambda x: attention(*[x.transpose(0, 1)] * 3, is_causal=True),
        torch.randn(3, 2, 8),
    )


def test_layers_of_torch(agrees):
    encoder = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    agrees(encoder, torch.randn(2, 5, 16))
    decoder = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True)
    agrees(decoder, torch.randn(2, 5, 16), torch.randn(2, 7, 16))
