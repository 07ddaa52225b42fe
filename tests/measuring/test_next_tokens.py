"""Causal language models are judged by the token behind each place."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from small_transformers import built
from torch import Tensor, nn

import octavo
from octavo.errors import InputError
from octavo.graph.batches import Batch, Signature
from octavo.measuring.next_tokens import Perplexity, tells_next_tokens, with_next_tokens
from octavo.searching.measuring import Judge

SIGNATURE = Signature(("input_ids", "attention_mask"), 1)


@cache
def llama() -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    model: nn.Module = built("LlamaForCausalLM", **sizes, initializer_range=0.3)
    return model


def padded() -> dict[str, Tensor]:
    """Sequences of 12, 9, 7 and 5 tokens."""
    torch.manual_seed(1)
    ids = torch.randint(1, 50, (4, 12))
    mask = (torch.arange(12) < torch.tensor([[12], [9], [7], [5]])).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@cache
def weight_only() -> octavo.QuantizedModel:
    return octavo.quantize(llama(), padded(), mode="weight_only")


@cache
def four_bits() -> octavo.QuantizedModel:
    qconfig = octavo.weight_only_qconfig(4, group_size=32)
    return octavo.quantize(llama(), padded(), qconfig=qconfig)


def own_loss(model: Any, batch: dict[str, Tensor]) -> float:
    """What the model itself makes of the labels that a user would give."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        return float(model(**batch, labels=labels).loss)


def rows_of(model: nn.Module, q: nn.Module, data: Any, **options: Any) -> Any:
    return octavo.compare(model, q, data, rounds=1, progress=False, **options)


@pytest.mark.parametrize("labels", ["none", "masked", "not masked"])
def test_loss_and_perplexity_are_the_models_own(labels: str) -> None:
    model, batch, q = llama(), padded(), four_bits()
    given = {
        "none": batch,
        "masked": batch
        | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)},
        "not masked": batch | {"labels": batch["input_ids"]},
    }[labels]
    comparison = rows_of(model, q, [given])
    assert comparison.metric == "perplexity"
    for name, network in (("fp32", model), ("int8", q)):
        exact = own_loss(network, batch)
        assert comparison[name].loss == pytest.approx(exact, rel=1e-5)
        assert comparison[name].metric == pytest.approx(math.exp(exact), rel=1e-5)
    assert comparison["int8"].loss != comparison["fp32"].loss
    text = str(comparison)
    assert "perplexity" in text
    assert "loss" in text


def test_ids_alone_and_models_that_keep_their_class() -> None:
    model, ids = llama(), padded()["input_ids"]
    q = octavo.quantize(model, ids, mode="weight_only", scope="modules")
    comparison = rows_of(model, q, [ids])
    with torch.no_grad():
        exact = [float(m(ids, labels=ids).loss) for m in (model, q)]
    assert [comparison[n].loss for n in ("fp32", "int8")] == pytest.approx(exact, rel=1e-5)


def test_top_1_is_of_the_next_token() -> None:
    model, batch, q = llama(), padded(), weight_only()
    top1 = rows_of(model, q, [batch], metric="top1")["fp32"].metric
    with torch.no_grad():
        best = model(**batch).logits.argmax(-1)[:, :-1]
    counted = batch["attention_mask"][:, 1:] == 1
    right = (best == batch["input_ids"][:, 1:])[counted]
    assert top1 == pytest.approx(100 * right.double().mean().item())


def test_sensitivity_and_search_judge_by_the_next_token() -> None:
    model, batch = llama(), padded()
    options = {"mode": "dynamic", "data": [batch], "progress": False}
    found = octavo.sensitivity(model, batch, exact=True, **options)
    with torch.no_grad():
        best = model(**batch).logits.argmax(-1)[:, :-1]
    right = (best == batch["input_ids"][:, 1:])[batch["attention_mask"][:, 1:] == 1]
    assert found.metric == "top1"
    assert found.float_metric == pytest.approx(100 * right.double().mean().item())
    signature = Signature(tuple(batch), 1, losses=("shifted_cross_entropy",))
    assert Judge([batch], None, signature, None)(model) == pytest.approx(found.float_metric)


def test_a_function_gets_the_labels_as_they_are() -> None:
    model, batch, q = llama(), padded(), weight_only()
    seen: list[Tensor] = []

    def metric(outputs: Any, labels: Tensor) -> float:
        seen.append(labels)
        return 0.0

    rows_of(model, q, [batch | {"labels": batch["input_ids"]}], metric=metric)
    assert torch.equal(seen[0], batch["input_ids"])


def test_the_mean_is_over_tokens_and_not_over_batches() -> None:
    perplexity, logits = Perplexity(), torch.randn(3, 5, 7)
    labels = torch.randint(0, 7, (3, 5))
    labels[0, 1:] = -100
    perplexity.update(logits[:1], labels[:1])
    perplexity.update(logits[1:], labels[1:])
    exact = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert perplexity.loss == pytest.approx(exact.item(), rel=1e-5)


def test_other_models_tell_no_next_tokens() -> None:
    ids = torch.randint(1, 50, (2, 6))
    for name in ("BertForMaskedLM", "BertModel"):
        assert not tells_next_tokens(built(name), Batch((ids,), {}))
    assert tells_next_tokens(llama(), Batch((ids,), {}))


def test_what_is_no_row_of_tokens_is_left_as_it_is() -> None:
    batch = Batch((torch.rand(2, 3),), {}, torch.tensor([1, 2]))
    assert with_next_tokens(batch, SIGNATURE) is batch


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_perplexity_of_a_window_that_moves(stride: int) -> None:
    """Against every token by itself, with what stands before it in its window."""
    model: Any = llama()
    tokens = torch.randint(1, 50, (23,))
    window = 8
    losses = []
    with torch.no_grad():
        for at in range(1, len(tokens)):
            start = 0 if at <= window else -(-(at - window) // stride) * stride
            logits = model(tokens[start:at][None]).logits[0, -1]
            losses.append(-float(torch.log_softmax(logits.double(), 0)[tokens[at]]))
    right = math.exp(sum(losses) / len(losses))
    assert octavo.perplexity(model, tokens, window=window, stride=stride) == pytest.approx(right)
    whole = octavo.perplexity(model, tokens, window=23)
    ids = tokens[None]
    assert whole == pytest.approx(
        math.exp(own_loss(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}))
    )


def test_perplexity_of_too_little() -> None:
    model: Any = llama()
    with pytest.raises(InputError, match="at least two tokens"):
        octavo.perplexity(model, torch.tensor([3]))
    with pytest.raises(InputError, match="stride=9 is longer than window=8"):
        octavo.perplexity(model, torch.arange(20), window=8, stride=9)
    with pytest.raises(InputError, match="do not fit the tokens"):
        octavo.perplexity(lambda ids: torch.zeros(*ids.shape, 4), torch.arange(20))
    with pytest.raises(InputError, match=r"no logits \[1, 19, V\] of 19 tokens, but \[1, 5, 20\]"):
        octavo.perplexity(lambda ids: torch.zeros(1, 5, 20), torch.arange(20))


def test_divergence_in_the_table() -> None:
    model, batch = llama(), padded()
    q = octavo.quantize(model, qconfig=octavo.weight_only_qconfig(4, group_size=32))
    comparison = rows_of(model, q, [batch])
    with torch.no_grad():
        exact, other = (net(**batch).logits.double().log_softmax(-1) for net in (model, q))
    apart = (exact.exp() * (exact - other)).sum(-1)
    follows = batch["attention_mask"][:, 1:] == 1  # the places whose next token is one
    assert comparison["int8"].divergence == pytest.approx(float(apart[:, :-1][follows].mean()))
    assert comparison["fp32"].divergence is None
    assert "divergence" in str(comparison)
