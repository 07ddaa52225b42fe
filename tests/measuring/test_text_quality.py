"""What a text says of a language model, alone and beside another."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import octavo
from octavo.measuring.text_quality import text_quality

TOKENS = torch.arange(4).repeat(8)


def uniform(ids: Tensor) -> Tensor:
    return torch.zeros(*ids.shape, 4)


def counting(ids: Tensor) -> Tensor:
    """Half sure that the next number comes next: logits log(3) above three others."""
    logits = torch.zeros(*ids.shape, 4)
    return logits.scatter(-1, ((ids + 1) % 4)[..., None], math.log(3.0))


def test_golden_values() -> None:
    found = text_quality(counting, TOKENS, reference=uniform, window=8)
    assert found.perplexity == pytest.approx(2.0)
    assert found.reference_perplexity == pytest.approx(4.0)
    right = sum(0.25 * math.log(0.25 / q) for q in (1 / 2, 1 / 6, 1 / 6, 1 / 6))
    assert found.divergence == pytest.approx(right, rel=1e-6)
    assert found.agreement == pytest.approx(100 * 7 / 31)  # a 0 follows seven 3s
    assert found.tokens == 31
    assert "-50.00 %" in str(found)


def test_alone_it_is_the_perplexity() -> None:
    found = text_quality(counting, TOKENS, window=6, stride=2)
    assert found.perplexity == octavo.perplexity(counting, TOKENS, window=6, stride=2)
    assert found.divergence is None
    assert found.to_dict()["reference_perplexity"] is None


def test_what_perplexity_refuses() -> None:
    with pytest.raises(octavo.OctavoError, match="stride=9"):
        text_quality(counting, TOKENS, window=8, stride=9)
    with pytest.raises(octavo.OctavoError, match="do not belong together"):
        text_quality(counting, TOKENS, reference=lambda ids: torch.zeros(*ids.shape, 5))
