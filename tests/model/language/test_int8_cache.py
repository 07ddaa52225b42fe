"""A cache in int8 is a float cache of the rounded keys and values, whatever is done with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from language_models import assert_same_tokens, generated, language_model, prompts, transformers
from torch import Tensor

from octavo.errors import InputError
from octavo.model.language.int8_cache import Int8Cache
from octavo.model.language.int8_rows import to_floats, to_rows

MODELS = ("llama", "gemma 3", "bloom")  # one with windows
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "several, longer than windows": {
        "num_beams": 4,
        "num_return_sequences": 2,
        "max_new_tokens": 20,
    },
}


class RoundedCache(transformers.DynamicCache):
    """The oracle: floats, rounded as they come in."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        rounded = (to_floats(to_rows(t)) for t in (key_states, value_states))
        keys, values = super().update(*rounded, *args, **kwargs)
        return keys, values


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_generate_is_that_of_rounded_floats(name: str, way: str) -> None:
    model, given = language_model(name), prompts(name)
    ours, right = (
        model.generate(
            **given,
            past_key_values=cache,
            return_dict_in_generate=True,
            output_logits=True,
            **{"max_new_tokens": 10, "do_sample": False} | WAYS[way],
        )
        for cache in (Int8Cache(model.config), RoundedCache(config=model.config))
    )
    assert torch.equal(ours.sequences, right.sequences)
    for own, exact in zip(ours.logits, right.logits, strict=True):
        assert torch.equal(own, exact)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_with_an_assistant_it_is_cropped(name: str) -> None:
    model = language_model(name)
    given = {key: tensor[:1] for key, tensor in prompts(name, 12).items()}
    helper = language_model(name)
    with torch.no_grad():  # guesses that are wrong at times
        for parameter in helper.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    alone = generated(model, given, past_key_values=RoundedCache(config=model.config))
    cache = Int8Cache(model.config)
    helped = generated(model, given, past_key_values=cache, assistant_model=helper)
    assert_same_tokens(helped, alone)
    before = cache.get_seq_length()
    cache.crop(-2)
    assert cache.get_seq_length() == before - 2


def test_an_encoder_stays_float() -> None:
    model, given = language_model("t5"), prompts("t5")
    ours, right = (
        generated(
            model,
            given,
            past_key_values=transformers.EncoderDecoderCache(cache, transformers.DynamicCache()),
            num_beams=2,
        )
        for cache in (Int8Cache(), RoundedCache())
    )
    assert torch.equal(ours.sequences, right.sequences)


def test_a_text_in_parts_is_the_text_in_one_call() -> None:
    model = language_model("llama")
    ids = torch.randint(3, 60, (2, 12))
    with torch.no_grad():
        whole = model(ids, past_key_values=Int8Cache(model.config)).logits
        cache = Int8Cache(model.config)
        parts = [model(part, past_key_values=cache).logits for part in ids.split(5, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)


def test_memory_and_types() -> None:
    model = language_model("llama").to(torch.bfloat16)
    cache = Int8Cache(model.config)
    with torch.no_grad():
        model(torch.randint(3, 60, (2, 11)), past_key_values=cache)
    for layer in cache.layers:
        for rows in (layer.keys, layer.values):
            assert (rows.dtype, rows.shape) == (torch.int8, (2, 2, 11, 16 + 8))
    state = torch.randn(2, 2, 1, 16, dtype=torch.bfloat16)
    assert cache.update(state, state, 0)[0].dtype == torch.bfloat16


def test_the_rows_of_a_batch() -> None:
    cache, exact = Int8Cache(), RoundedCache()
    state = torch.randn(2, 2, 5, 4)
    for each in (cache, exact):
        each.update(state, 2 * state, 0)
        each.batch_repeat_interleave(2)
        each.batch_select_indices(torch.tensor([3, 0]))
        each.reorder_cache(torch.tensor([1, 0]))
    ours, right = (each.update(state, state, 0) for each in (cache, exact))
    assert torch.equal(ours[0], right[0])
    assert torch.equal(ours[1], right[1])
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.update(state, state, 0)[0].shape == (2, 2, 5, 4)


def test_what_keeps_other_states_is_refused() -> None:
    config = transformers.Qwen3NextConfig(
        num_hidden_layers=2, layer_types=["linear_attention", "full_attention"]
    )
    with pytest.raises(InputError, match="keeps a LinearAttentionLayer"):
        Int8Cache(config)
