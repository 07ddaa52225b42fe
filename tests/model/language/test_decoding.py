from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from language_models import (
    assert_same_tokens,
    generated,
    language_model,
    oracle,
    prompts,
    transformers,
)
from small_tokenizers import tokenizer
from torch import nn

import octavo
from octavo.model.language import decoding
from octavo.model.language.choosing import Choice
from octavo.model.language.int8_cache import Int8Cache
from octavo.model.language.long_inputs import round_long_inputs
from octavo.model.language.writing import Batch, Writing
from octavo.model.language.written_text import WrittenText
from octavo.numerics.native import library

pytestmark = pytest.mark.skipif(bool(library.obstacle()), reason="there are no such kernels here")

EIGHT, FOUR = octavo.weight_only_qconfig(), octavo.weight_only_qconfig(4, group_size=32)
MIXED = octavo.QConfigMapping().set_global(EIGHT).set_module_name_regex(r".*(up|v)_proj", FOUR)
KNOWN = {
    **dict.fromkeys(("llama, tied", "qwen 2", "gemma", "phi", "gpt neox", "opt"), EIGHT),
    **dict.fromkeys(("llama", "mistral", "gemma 2", "phi 3", "gpt 2", "bloom"), FOUR),
    **dict.fromkeys(("qwen 3", "gemma 3"), MIXED),
}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each native call had."""
    counted: list[int] = []
    run = decoding.Steps.run

    def counting(self: Any, model: Any, given: Any) -> Any:
        result = run(self, model, given)
        if result is not None:
            counted.append(result.last_hidden_state.shape[1])
        return result

    monkeypatch.setattr(decoding.Steps, "run", counting)
    return counted


def quantized(model: nn.Module, qconfig: Any = EIGHT) -> Any:
    return octavo.quantize(model, mode="weight_only", qconfig=qconfig)


def in_python(q: Any) -> Any:
    """A copy whose decoder is of its own class."""
    own = copy.deepcopy(q)
    decoder = next(m for m in own.modules() if isinstance(m, decoding.Stepping))
    decoder.__class__ = type(decoder)._base
    return own


@pytest.mark.parametrize("name", KNOWN)
def test_calls_are_native_and_write_the_same_tokens(name: str, steps: list[int]) -> None:
    model, given = language_model(name), prompts(name)
    q = quantized(model, KNOWN[name])
    ours = generated(q, given)
    assert steps == [7] + [1] * 9  # of ten tokens the prompt gives one
    exact = generated(oracle(q, model), given)
    assert_same_tokens(ours, exact)
    assert_same_tokens(generated(in_python(q), given), exact)
    for own, right in zip(ours.logits, exact.logits, strict=True):
        torch.testing.assert_close(own, right, rtol=0, atol=2e-2 * float(right.std()))
    assert len(steps) == 10


CACHES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "dynamic": lambda q: {"past_key_values": transformers.DynamicCache()},
    "static": lambda q: {
        "past_key_values": transformers.StaticCache(config=q.config, max_cache_len=40)
    },
    "beams": lambda q: {"num_beams": 3},
    "sampled": lambda q: {"num_return_sequences": 3, "num_beams": 3},
}


@pytest.mark.parametrize("way", CACHES)
def test_caches(way: str, steps: list[int]) -> None:
    q, given = quantized(language_model("llama")), prompts("llama")
    if way == "static":  # generate compiles for it, which needs no native steps
        ours, exact = (
            stepwise(net, given["input_ids"], CACHES[way](q)) for net in (q, in_python(q))
        )
        torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-3)
    else:
        ours, exact = (generated(net, given, **CACHES[way](q)) for net in (q, in_python(q)))
        assert torch.equal(ours.sequences, exact.sequences)
    assert len(steps) >= 5


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("llama", torch.float32), ("gemma 3", torch.float32), ("bloom", torch.bfloat16)],
)
def test_a_cache_in_int8(name: str, dtype: torch.dtype, steps: list[int]) -> None:
    q, given = quantized(language_model(name).to(dtype), EIGHT), prompts(name, 40)
    caches = [Int8Cache(q.config) for _ in range(2)]
    ours, right = (
        stepwise(net, given["input_ids"], {"past_key_values": cache}, 12)
        for net, cache in zip((q, in_python(q)), caches, strict=True)
    )
    assert steps == [40] + [1] * 12
    near = 2e-2 if dtype == torch.float32 else 0.1
    assert (ours - right).float().norm() < near * right.float().norm()
    for native, plain in zip(*(cache.layers for cache in caches), strict=True):
        assert (native.keys.dtype, native.keys.shape) == (torch.int8, plain.keys.shape)
    # What native calls leave goes on in Python, and beams reorder it.
    if name != "gemma 3":  # of windows some tokens are gone
        caches[0].crop(-1)
    _, heads, _, size = caches[0].layers[0].keys.shape
    state = torch.randn(2, heads, 1, size - 8, dtype=dtype)
    assert caches[0].update(state, state, 0)[0].dtype == dtype
    beams = generated(q, given, past_key_values=Int8Cache(q.config), num_beams=3)
    assert beams.sequences.shape[1] == 50


@torch.no_grad()
def stepwise(net: Any, ids: torch.Tensor, how: dict[str, Any], count: int = 8) -> torch.Tensor:
    """The logits of steps of one token each, of the same tokens for every net."""
    cache, found = how["past_key_values"], []
    net(ids, past_key_values=cache)
    for token in range(count):
        given = torch.full((len(ids), 1), token + 3)
        found.append(net(given, past_key_values=cache).logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_a_padded_prompt_is_native(padded: bool, steps: list[int]) -> None:
    q, ids = quantized(language_model("llama")), torch.randint(3, 60, (2, 5))
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[0, :2] = not padded
    found = []
    for net in (q, in_python(q)):
        cache = transformers.DynamicCache(config=q.config)
        first = net(ids, past_key_values=cache, attention_mask=mask[:, :5]).logits
        assert cache.get_seq_length() == 5
        behind = net(ids[:, :1], past_key_values=cache, attention_mask=mask).logits
        found.append(torch.cat([first[:, 2:], behind], 1))  # what padding gives means nothing
    assert steps == [5, 1]
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gemma 3", "phi 3"])
@torch.no_grad()
def test_a_long_prompt_is_one_call_of_several_parts(
    name: str, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.runtimes.native.decoder.AT_ONCE", 2 * 34)
    q, ids = quantized(language_model(name), MIXED), torch.randint(3, 60, (2, 71))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    for given in (None, mask):
        ours, right = (net(ids, attention_mask=given).logits for net in (q, in_python(q)))
        torch.testing.assert_close(ours[:, 3:], right[:, 3:], rtol=1e-3, atol=2e-3)
    assert steps == [71, 71]


@pytest.mark.parametrize("rows", [1, 8])
def test_rows_that_are_rounded_stay_native(rows: int, steps: list[int]) -> None:
    q, ids = quantized(language_model("llama"), FOUR), torch.randint(3, 60, (1, 8))
    plain = copy.deepcopy(q)
    round_long_inputs(q, rows=rows)
    config = q.config
    caches = [{"past_key_values": transformers.DynamicCache(config=config)} for _ in range(3)]
    ours, exact, right = (
        stepwise(net, ids, cache, 3)
        for net, cache in zip((q, plain, in_python(q)), caches, strict=True)
    )
    assert steps == [8, 1, 1, 1] * 2
    errors = [float((ours - x).norm() / ours.norm()) for x in (exact, right)]
    assert 1e-3 < errors[0] < 0.1  # the prompt is rounded in both cases
    assert errors[1] < errors[0]


@torch.no_grad()
def test_a_call_without_a_cache_keeps_what_it_is_told_to(steps: list[int]) -> None:
    q, ids = quantized(language_model("llama")), torch.randint(3, 60, (1, 5))
    exact = in_python(q)(ids).logits
    for how, kept in (({}, 5), ({"use_cache": True}, 5), ({"use_cache": False}, None)):
        result = q(ids, **how)
        cache = result.past_key_values
        assert (cache and cache.get_seq_length()) == kept
        torch.testing.assert_close(result.logits, exact, rtol=1e-3, atol=1e-3)
    assert steps == [5, 5, 5]


@pytest.mark.parametrize("name", ["llama", "gpt 2"])
@torch.no_grad()
def test_texts_in_one_row_do_not_see_each_other(name: str, steps: list[int]) -> None:
    q, ids = quantized(language_model(name)), torch.randint(3, 60, (1, 9))
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    alone = q(ids[:, 4:]).logits
    # Where a cache is kept transformers takes them for one text.
    for keeps, counted in ((False, [5]), (True, [5, 9])):
        how = {"position_ids": positions, "use_cache": keeps}
        ours, right = (net(ids, **how).logits for net in (q, in_python(q)))
        torch.testing.assert_close(ours, right, rtol=1e-3, atol=1e-3)
        assert torch.allclose(ours[:, 4:], alone, rtol=1e-3, atol=1e-3) is not keeps
        assert steps == counted


@pytest.mark.parametrize("name", ["mistral", "gemma 2"])
@torch.no_grad()
def test_windows_slide_over_what_the_cache_keeps(name: str, steps: list[int]) -> None:
    q, ids = quantized(language_model(name)), torch.randint(3, 60, (2, 20))
    found = []
    for net in (q, in_python(q)):
        cache = transformers.DynamicCache(config=q.config)
        logits = [net(ids, past_key_values=cache).logits[:, -1]]
        for token in range(4):
            given = torch.full((2, 1), 5 + token)
            if token == 2:  # python's own call amid ours
                cache.layers[0].keys = cache.layers[0].keys.clone()
            logits.append(net(given, past_key_values=cache).logits[:, -1])
        assert cache.layers[0].keys.shape[2] == 7
        assert cache.get_seq_length() == 24
        found.append(torch.stack(logits))
    assert steps == [20] + [1] * 4
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "int8"), [("qwen 3", False), ("bloom", False), ("llama", True)])
def test_texts_that_share_a_batch(name: str, int8: bool, steps: list[int]) -> None:
    q = quantized(language_model(name))
    batch, texts = Batch(q, int8), [[5, 9, 30, 7], [8, 9], [3] * 9]
    write = [Writing(t, 6, Choice(), WrittenText(tokenizer(), t), lambda _: None) for t in texts]
    for text in write:
        batch.add(text)
    while batch.writings:
        batch.step()
    for text, own in zip(texts, write, strict=True):
        how = {"past_key_values": Int8Cache(q.config)} if int8 else {}
        how |= {"max_new_tokens": 6, "do_sample": False}
        right = in_python(q).generate(torch.tensor([text]), **how)
        assert own.tokens == right[0, len(text) :].tolist()
    assert sorted(steps)[-3:] == [2, 4, 9]
    assert steps.count(1) >= 5


@pytest.mark.parametrize("name", ["llama", "gpt 2"])
@torch.no_grad()
def test_a_model_in_bfloat16(name: str, steps: list[int]) -> None:
    model, ids = language_model(name).bfloat16(), torch.randint(3, 60, (2, 9))
    q = quantized(model)
    exact = oracle(q, model).float()
    cache, right = (transformers.DynamicCache(config=q.config) for _ in range(2))
    for given in (ids, ids[:, :1], ids[:, 1:2]):
        ours = q(given, past_key_values=cache).logits
        best = exact(given, past_key_values=right).logits
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - best).norm() < 2e-2 * best.norm()
    assert steps == [9, 1, 1]
    assert cache.layers[1].values.dtype == torch.bfloat16
    values, best = cache.layers[1].values.float(), right.layers[1].values
    assert (values - best).norm() < 1e-2 * best.norm()
    behind = in_python(q)(ids[:, :1], past_key_values=cache).logits  # goes on with our cache
    best = exact(ids[:, :1], past_key_values=right).logits
    assert (behind.float() - best).norm() < 5e-2 * best.norm()


@torch.no_grad()
def test_a_cache_may_be_cut_copied_and_read_between_steps(steps: list[int]) -> None:
    q = quantized(language_model("llama"))
    exact, ids = in_python(q), torch.randint(3, 60, (1, 9))

    def logits(net: Any) -> list[torch.Tensor]:
        cache = transformers.DynamicCache()
        found = [net(ids, past_key_values=cache).logits]
        for token in (5, 6, 7):
            found.append(net(torch.tensor([[token]]), past_key_values=cache).logits)
        assert cache.get_seq_length() == cache.layers[1].values.shape[2] == 12
        other = copy.deepcopy(cache)
        shallow = copy.copy(cache)
        shallow.layers = [copy.copy(layer) for layer in cache.layers]
        for one, token in ((cache, 8), (other, 9), (shallow, 10), (cache, 11), (other, 12)):
            found.append(net(torch.tensor([[token]]), past_key_values=one).logits)
        cache.crop(-4)
        found.append(net(torch.tensor([[4, 5, 6]]), past_key_values=cache).logits)
        found.append(net(ids, past_key_values=cache).logits)
        found.append(net(torch.tensor([[7]]), past_key_values=cache).logits)
        return found

    for ours, right in zip(logits(q), logits(exact), strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-3, atol=1e-3)
    assert len(steps) >= 9
    assert 3 in steps


def test_an_assistant_and_many_tokens_at_once(steps: list[int]) -> None:
    q = quantized(language_model("llama"))
    given = {name: tensor[:1] for name, tensor in prompts("llama").items()}
    exact = generated(in_python(q), given)
    helped = generated(q, given, assistant_model=in_python(q))
    count = helped.sequences.shape[1]
    assert torch.equal(helped.sequences, exact.sequences[:, :count])
    assert max(steps) > 1


@torch.no_grad()
def test_what_is_asked_for_beside_the_logits_is_returned(steps: list[int]) -> None:
    q, ids = quantized(language_model("llama")), torch.randint(3, 60, (2, 5))
    token = torch.tensor([[7], [9]])

    def called(net: Any, **how: Any) -> Any:
        cache = transformers.DynamicCache()
        net(ids, past_key_values=cache)
        net(token, past_key_values=cache)
        return net(token, past_key_values=cache, **how)

    exact = in_python(q)
    for how in ({"output_hidden_states": True}, {"return_dict": False}):
        ours, right = called(q, **how), called(exact, **how)
        assert len(ours) == len(right)
        torch.testing.assert_close(ours[0], right[0], rtol=1e-3, atol=1e-3)
    assert len(called(q, output_hidden_states=True).hidden_states) == 3
    q.set_attn_implementation("eager")
    assert called(q, output_attentions=True).attentions[1].shape == (2, 4, 1, 7)
    seen: list[int] = []
    hook = q.model.layers[1].mlp.down_proj.register_forward_hook(lambda *of: seen.append(1))
    called(q)
    assert len(seen) == 3
    hook.remove()
    called(q)
    assert len(seen) == 3


@torch.no_grad()
def test_other_weights_are_taken_up(steps: list[int]) -> None:
    q, other = quantized(language_model("llama")), language_model("llama")
    for parameter in other.parameters():
        parameter.mul_(1.1)
    changed, ids = quantized(other), torch.randint(3, 60, (1, 5))
    how = {"past_key_values": transformers.DynamicCache()}
    stepwise(q, ids, how)
    q.load_state_dict(changed.state_dict())
    of_q, of_changed = (
        stepwise(net, ids, {"past_key_values": transformers.DynamicCache()})
        for net in (q, in_python(changed))
    )
    torch.testing.assert_close(of_q, of_changed, rtol=1e-3, atol=1e-3)
    q.model.layers[0].mlp = nn.Identity()
    of_q = stepwise(q, ids, {"past_key_values": transformers.DynamicCache()})
    right = stepwise(in_python(q), ids, {"past_key_values": transformers.DynamicCache()})
    torch.testing.assert_close(of_q, right, rtol=1e-3, atol=1e-3)


def fewer_blocks(q: Any) -> None:
    q.model.layers = nn.ModuleList(list(q.model.layers)[:1])


def blocks_the_other_way_round(q: Any) -> None:
    q.model.layers = nn.ModuleList(list(q.model.layers)[::-1])


def a_hook_of_a_block(q: Any) -> None:
    q.model.layers[1].register_forward_pre_hook(lambda block, args: (2 * args[0], *args[1:]))


def a_forward_of_a_layer(q: Any) -> None:
    mlp = q.model.layers[0].mlp
    mlp.forward = lambda x: 2 * type(mlp).forward(mlp, x)


def other_memory_of_a_norm(q: Any) -> None:
    weight = q.model.layers[0].input_layernorm.weight
    weight.data = 3 * weight.data


def other_scale_of_attention(q: Any) -> None:
    q.model.layers[1].self_attn.scaling *= 4.0


def another_bias_in_its_place(q: Any) -> None:
    q.model.layers[0].self_attn.v_proj.bias.add_(2.0)


def another_bias(q: Any) -> None:
    q.model.layers[1].self_attn.v_proj.bias = torch.full((32,), 3.0)


CHANGES = [
    another_bias_in_its_place,
    another_bias,
    other_scale_of_attention,
    fewer_blocks,
    blocks_the_other_way_round,
    a_hook_of_a_block,
    a_forward_of_a_layer,
    other_memory_of_a_norm,
]


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_behind_the_first_steps_counts(change: Callable[[Any], None]) -> None:
    q, ids = quantized(language_model("qwen 2")), torch.randint(3, 60, (1, 5))

    def stepped(net: Any) -> torch.Tensor:
        return stepwise(net, ids, {"past_key_values": transformers.DynamicCache()})

    before = stepped(q)
    change(q)
    right = stepped(in_python(q))
    assert (right - before).norm() > 0.1 * before.norm()
    torch.testing.assert_close(stepped(q), right, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_decoder_alone_returns_what_is_asked_for() -> None:
    q, ids = quantized(language_model("llama")), torch.randint(3, 60, (1, 5))
    cache = transformers.DynamicCache()
    q.model(input_ids=ids, past_key_values=cache)
    for _ in range(3):
        given = q.model(input_ids=ids[:, :1], past_key_values=cache, return_dict=False)
        assert isinstance(given, tuple)


@torch.no_grad()
def test_dropout_in_training_is_that_of_python(steps: list[int]) -> None:
    q, ids = quantized(language_model("llama")), torch.randint(3, 60, (1, 5))
    stepwise(q, ids, {"past_key_values": transformers.DynamicCache()})
    count = len(steps)
    assert count
    stepwise(q.train(), ids, {"past_key_values": transformers.DynamicCache()})
    assert len(steps) == count


def test_a_decoder_that_computes_something_else_is_found_out(
    steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama import modeling_llama

    turn = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(
        modeling_llama,
        "apply_rotary_pos_emb",
        lambda q, k, cos, sin, **how: turn(q, k, cos, -sin, **how),
    )
    model, given = language_model("llama"), prompts("llama")
    q = quantized(model)
    assert_same_tokens(generated(q, given), generated(oracle(q, model), given))
    assert not steps


def test_blocks_with_other_code_stay_python(steps: list[int]) -> None:
    given = prompts("llama")
    generated(quantized(language_model("mixtral")), given)
    kept_float = octavo.QConfigMapping().set_global(EIGHT).set_module_name_regex(".*o_proj", None)
    generated(quantized(language_model("llama"), kept_float), given)
    assert not steps


@torch.no_grad()
def test_a_norm_without_weights_stays_python(steps: list[int]) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    config = transformers.OlmoConfig(**sizes, num_attention_heads=4, vocab_size=64, pad_token_id=0)
    q = quantized(transformers.OlmoForCausalLM(config).eval())
    assert q(torch.tensor([[3, 4, 5]])).logits.shape == (1, 3, 64)
    assert not steps


class OwnDecoder(nn.Module):
    """Its parts have the names of Llama's, but its blocks are called at once."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.rotary_emb = nn.Embedding(64, 32), nn.Identity()
        self.layers, self.norm = nn.Sequential(nn.Linear(32, 32), nn.ReLU()), nn.LayerNorm(32)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layers(self.rotary_emb(self.embed_tokens(ids))))


@torch.no_grad()
def test_parts_of_the_same_names_stay_python() -> None:
    model, ids = nn.Sequential(OwnDecoder(), nn.Linear(32, 8)).eval(), torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(quantized(model)(ids), model(ids), rtol=0, atol=0.1)


@torch.no_grad()
def test_a_call_that_comes_while_another_tries_out(monkeypatch: pytest.MonkeyPatch) -> None:
    q, ids = quantized(language_model("llama")), torch.randint(3, 60, (1, 5))
    try_out = decoding.Steps.try_out
    found: list[torch.Tensor] = []

    def slow(self: Any, *how: Any) -> None:
        monkeypatch.setattr(decoding.Steps, "try_out", try_out)
        with ThreadPoolExecutor(1) as other:
            found.append(other.submit(torch.no_grad()(q), ids).result().logits)
        try_out(self, *how)

    monkeypatch.setattr(decoding.Steps, "try_out", slow)
    torch.testing.assert_close(q(ids).logits, found[0])


def test_nan_is_what_the_layers_make_of_it(steps: list[int]) -> None:
    q, ids = quantized(language_model("llama")), torch.randint(3, 60, (2, 5))
    cache = transformers.DynamicCache()
    with torch.no_grad():
        q(ids, past_key_values=cache)
        for _ in range(2):
            q(ids[:, :1], past_key_values=cache)
        count = len(steps)
        embeds = torch.randn(2, 1, 64)
        embeds[1, 0, 3] = float("nan")
        logits = q(inputs_embeds=embeds, past_key_values=cache).logits
    assert logits.isnan().flatten(1).all(1).tolist() == [False, True]
    assert cache.get_seq_length() == 8
    assert len(steps) == count


def test_gradients_go_where_they_went() -> None:
    q, ids = quantized(language_model("llama")), torch.randint(3, 60, (2, 1))
    cache = transformers.DynamicCache()
    for _ in range(3):
        hidden = q.model(input_ids=ids, past_key_values=cache).last_hidden_state
        assert hidden.requires_grad


def test_it_is_still_a_decoder_of_its_class() -> None:
    q = quantized(language_model("llama"))
    assert isinstance(q.model, transformers.LlamaModel)
    assert type(q.model).__name__ == "LlamaModel"
    given = prompts("llama")
    exact = generated(q, given).sequences
    for again in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):  # noqa: S301
        assert isinstance(again.model, decoding.Stepping)
        assert again.model._steps is None
        assert torch.equal(generated(again, given).sequences, exact)
    plain = transformers.AutoModel.from_config(q.config)
    assert type(quantized(plain)) is type(plain)
