"""Texts that share a batch are each what they would be alone, which is what `generate` writes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from language_models import LAST, language_model
from small_tokenizers import tokenizer

import octavo
from octavo.errors import InputError
from octavo.model.language import writing as writing_module
from octavo.model.language.choosing import Choice
from octavo.model.language.int8_cache import Int8Cache
from octavo.model.language.side_by_side import SideBySide
from octavo.model.language.writing import Batch, Writing
from octavo.model.language.written_text import WrittenText

GREEDY = Choice()
DRAWN = Choice(temperature=0.8, top_p=0.9, seed=7)
MODELS = ("llama", "gpt 2", "gemma 3", "bloom")


def writing(prompt: Sequence[int], most: int, choice: Choice = GREEDY) -> Writing:
    return Writing(prompt, most, choice, WrittenText(tokenizer(), prompt), lambda text: None)


def model_of(name: str) -> Any:
    """Quantized, with windows as long as texts are."""
    model = language_model(name)
    if name == "gemma 3":
        with torch.no_grad():  # else each token's own row outweighs all that it looks back on
            model.get_input_embeddings().weight *= 0.02
        model.config.sliding_window = 40
        for layer in model.model.layers:
            if layer.self_attn.sliding_window is not None:
                layer.self_attn.sliding_window = 40
    return octavo.quantize(model, mode="weight_only") if name in ("llama", "gpt 2") else model


def prompts_of(count: int, seed: int = 0) -> list[list[int]]:
    dice = random.Random(seed)
    return [[dice.randrange(3, LAST) for _ in range(dice.randint(1, 12))] for _ in range(count)]


def alone(model: Any, prompt: Sequence[int], most: int, choice: Choice, int8: bool) -> list[int]:
    batch, text = Batch(model, int8), writing(prompt, most, choice)
    batch.add(text)
    while batch.writings:
        batch.step()
    return text.tokens


def assert_same(model: Any, prompt: Sequence[int], ours: list[int], right: list[int]) -> None:
    """But for a token as likely as the right one, but for what float arithmetic leaves open."""
    assert len(ours) == len(right)
    step = next((n for n, pair in enumerate(zip(ours, right, strict=True)) if len({*pair}) > 1), -1)
    if step >= 0:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *right[:step]]])).logits[0, -1]
        away = (logits[right[step]] - logits[ours[step]]) / logits.std()
        assert abs(away) < 1e-2, f"step {step}: {ours[step]} for {right[step]}, {away} away"


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_alone_it_is_what_generate_writes(name: str, int8: bool) -> None:
    model = model_of(name)
    for prompt in prompts_of(3):
        cache = {"past_key_values": Int8Cache(model.config)} if int8 else {}
        right = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, **cache)
        ours = alone(model, prompt, 12, GREEDY, int8)
        assert_same(model, prompt, ours, right[0, len(prompt) :].tolist())


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_who_shares_the_batch_does_not_matter(
    name: str, int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing_module, "_PART", 5)  # prompts are read in turns
    model, dice = model_of(name), random.Random(1)
    jobs = [
        (prompt, dice.randint(1, 15), GREEDY if place % 2 else DRAWN)
        for place, prompt in enumerate(prompts_of(9, 1))
    ]
    batch, texts, late = Batch(model, int8), [writing(*job) for job in jobs], 0
    given_up = writing([5, 6, 7], 30)
    batch.add(given_up)
    for _ in range(400):
        if late < len(texts) and dice.random() < 0.4:
            batch.add(texts[late])
            late += 1
        if given_up in batch.writings and len(given_up.tokens) > 6:
            batch.remove(given_up)
        batch.step()
    assert not batch.writings
    assert batch.cache.nbytes == 0
    for text, job in zip(texts, jobs, strict=True):
        assert text.ended == "length"
        expected = alone(model, *job, int8)
        if text.choice == GREEDY:
            assert_same(model, text.prompt, text.tokens, expected)
        else:
            assert text.tokens == expected


def test_the_end_of_a_text_is_the_models_own() -> None:
    model = language_model("llama")
    prompt = [5, 9, 30]
    free = alone(model, prompt, 10, GREEDY, False)
    last = free[4]
    model.generation_config.eos_token_id = [last, 1000]
    text = writing(prompt, 10)
    batch = Batch(model)
    batch.add(text)
    while batch.writings:
        batch.step()
    assert text.ended == "stop"
    assert text.tokens == free[: free.index(last)]


def test_memory_goes_with_the_last_text_and_rows_are_cleared() -> None:
    cache = SideBySide(language_model("llama").config)
    state = torch.ones(1, 2, 3, 16)
    for row in range(3):
        cache.append()
        cache.begin(row, 1, 3)
        cache.update((row + 1) * state, state, 0)
        cache.end(3)
    cache.remove(1)
    assert cache.layers[0].keys[:, 0, 0, 0].tolist() == [1.0, 3.0, 0.0]
    assert cache.rows.lengths == [3, 3]
    mask, positions = cache.begin(0, 2, 1)
    assert mask is None  # texts of one length have no padding
    assert positions.tolist() == [[3], [3]]
    cache.begin(1, 1, 1)
    cache.end(1)
    mask, positions = cache.begin(0, 2, 2)
    assert mask is not None
    assert mask.tolist() == [[1, 1, 1, 1, 1, 0], [1] * 6]
    assert positions.tolist() == [[3, 4], [4, 5]]
    cache.remove(0)
    cache.remove(0)
    assert (len(cache), cache.nbytes) == (0, 0)


def test_what_cannot_be_written_is_refused() -> None:
    batch = Batch(language_model("llama"))
    assert batch.limit == 128
    assert batch.room([5] * 100, None) == 28
    for prompt, most, words in (
        ([], 5, "prompt is empty"),
        ([5, 64], 5, "token 64 of the prompt is none of the model's 64"),
        ([5], 0, "ask for at least one"),
        ([5] * 100, 29, "100 tokens, of which 29 tokens more|takes 128 in all"),
        ([5] * 128, None, "takes 128 in all"),
    ):
        with pytest.raises(InputError, match=words):
            batch.room(prompt, most)
    assert Batch(language_model("mistral")).limit == 8  # its window
    with pytest.raises(InputError, match="no limit of its own"):
        Batch(language_model("bloom")).room([5], None)


def test_what_one_text_breaks_is_its_own() -> None:
    model = language_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[50] = float("nan")
    batch, bad, good = Batch(model), writing([5, 50, 6], 4), writing([5, 6, 7], 4)
    for each in (bad, good):
        batch.add(each)
    while batch.writings:
        batch.step()
    assert (bad.ended, bad.tokens) == ("error", [])
    assert "not numbers" in str(bad.error)
    assert good.tokens == alone(model, good.prompt, 4, GREEDY, False)
