"""Language models of transformers, quantized layer by layer: `generate` is what it would be of the
same weights in float, whatever caches and searches it is asked for.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import (
    MODELS,
    assert_same_tokens,
    generated,
    language_model,
    oracle,
    prompts,
    transformers,
)
from small_transformers import built
from torch import nn

import octavo
from octavo import QConfigMapping, weight_only_qconfig
from octavo.errors import OctavoWarning
from octavo.model.parts import parts_of

EIGHT, FOUR = weight_only_qconfig(), weight_only_qconfig(4, group_size=32)
MIXED = (
    QConfigMapping()
    .set_global(EIGHT)
    .set_module_name_regex(r".*\.(mlp|ffn?|experts|feed_forward)(\..*)?", FOUR)
    .set_module_name_regex(r".*\.(fc1|fc2|DenseReluDense\..*)", FOUR)
)


def quantized(model: nn.Module, qconfig: Any) -> Any:
    with warnings.catch_warnings():  # what has no form is the subject of a test of its own
        warnings.simplefilter("ignore", OctavoWarning)
        return octavo.quantize(model, mode="weight_only", qconfig=qconfig)


def kinds_of(q: nn.Module) -> Mapping[str, str]:
    return {path: type(part).__name__ for path, part in parts_of(q).items()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("qconfig", [EIGHT, FOUR], ids=["8 bits", "4 bits"])
def test_the_tokens_are_those_of_the_same_weights_in_float(name: str, qconfig: Any) -> None:
    model, given = language_model(name), prompts(name)
    q = quantized(model, qconfig)
    assert type(q) is type(model)
    layers = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert set(layers) <= kinds_of(q).keys()
    exact = oracle(q, model)
    ways: dict[str, dict[str, Any]] = {"greedy": {}, "static": {"cache_implementation": "static"}}
    for how in ways.values():
        assert_same_tokens(generated(q, given, **how), generated(exact, given, **how))
    beams: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 8, "output_scores": True}
    ours = q.generate(**given, **beams, return_dict_in_generate=True)
    right = exact.generate(
        **given,
        **beams,
        return_dict_in_generate=True,
        # Of texts that score nearly alike in the middle either may be left: it is the same that is
        # compared, which the search has come to over caches that it put into another order.
        prefix_allowed_tokens_fn=lambda row, tokens: [int(ours.sequences[row, len(tokens)])],
    )
    assert torch.equal(ours.sequences, right.sequences)
    torch.testing.assert_close(ours.sequences_scores, right.sequences_scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["llama, tied", "gpt 2", "t5"])
def test_without_a_cache_and_with_an_assistant(name: str) -> None:
    model = language_model(name)
    q = quantized(model, FOUR)
    given = {key: tensor[:1] for key, tensor in prompts(name).items()}
    exact = generated(oracle(q, model), given)
    assert_same_tokens(generated(q, given, use_cache=False), exact)
    helped = generated(q, given, assistant_model=language_model(name))
    count = helped.sequences.shape[1]
    assert torch.equal(helped.sequences, generated(q, given).sequences[:, :count])


@pytest.mark.parametrize("name", ["mistral", "gemma 3"])
def test_a_sliding_window_that_the_text_leaves_behind(name: str) -> None:
    model, given = language_model(name), prompts(name, length=20)
    q = quantized(model, FOUR)
    exact = generated(oracle(q, model), given)
    cache = transformers.DynamicCache(config=model.config)
    assert_same_tokens(generated(q, given, past_key_values=cache), exact)
    assert_same_tokens(generated(q, given, cache_implementation="static"), exact)


def test_rows_of_a_batch_with_padding_are_those_of_their_own() -> None:
    model, given = language_model("llama"), prompts("llama")
    q = quantized(model, EIGHT)
    together = generated(q, given).sequences
    alone = generated(q, {"input_ids": given["input_ids"][1:, 3:]}).sequences
    assert torch.equal(together[1:, 3:], alone)


GROUPS = {
    "groups of 64": weight_only_qconfig(4, group_size=64),
    "groups of 128, affine": weight_only_qconfig(4, group_size=128, symmetric=False),
    "groups of 32, affine": weight_only_qconfig(4, group_size=32, symmetric=False),
    "8 bits in groups": weight_only_qconfig(8, group_size=32),
}


@pytest.mark.parametrize("qconfig", GROUPS.values(), ids=GROUPS)
def test_groups(qconfig: Any) -> None:
    model = built("LlamaForCausalLM", vocab_size=64, hidden_size=128, intermediate_size=256)
    q, ids = quantized(model, qconfig), torch.randint(3, 60, (2, 6))
    with torch.no_grad():
        exact, float_logits = oracle(q, model)(ids).logits, model(ids).logits
        difference = (q(ids).logits - exact).norm() / exact.norm()
    assert difference < 1e-3
    assert (exact - float_logits).norm() / float_logits.norm() > 3e-3  # of other weights
    assert {str(part.weights["weight"].scheme) for part in parts_of(q).values()} == {
        str(qconfig.weight.scheme)
    }


@pytest.mark.parametrize("name", ["llama", "gpt neox", "mixtral", "t5"])
def test_attention_of_eight_bits_and_what_is_behind_it_of_four(name: str) -> None:
    model, given = language_model(name), prompts(name)
    q = quantized(model, MIXED)
    bits: dict[int, list[str]] = {4: [], 8: []}
    for path, module in q.named_modules():
        if isinstance(module, octavo.nn.Linear):
            bits[module.weights["weight"].scheme.integers.bits].append(path)
    assert all("ttention" in path or "attn" in path or "head" in path for path in bits[8])
    assert all("mlp" in path or "DenseRelu" in path for path in bits[4])
    assert len(bits[4]) >= 4
    assert len(bits[8]) >= 4
    assert_same_tokens(generated(q, given), generated(oracle(q, model), given))


def test_a_tied_table_is_held_once() -> None:
    model = language_model("llama, tied")
    q = quantized(model, EIGHT)
    own = q.lm_head.tensors()["weight"]
    assert own.data_ptr() == q.model.embed_tokens.tensors()["weight"].data_ptr()
    generated(q, prompts("llama"))  # which packs weights
    assert torch.equal(q.lm_head.tensors()["weight"], own)
    assert octavo.summary(q).size_mb < 0.3 * sum(p.nbytes for p in model.parameters()) / 1e6


def test_the_head_by_rule() -> None:
    model = language_model("llama")
    q = quantized(model, QConfigMapping().set_global(FOUR).set_module_name("lm_head", EIGHT))
    assert q.lm_head.weights["weight"].scheme.integers.bits == 8
    assert q.model.layers[0].mlp.up_proj.weights["weight"].scheme.integers.bits == 4
    kept = quantized(model, QConfigMapping().set_global(FOUR).set_module_name("lm_head", None))
    assert type(kept.lm_head) is nn.Linear
    tied = language_model("llama, tied")
    rule = QConfigMapping().set_global(FOUR).set_module_name("lm_head", None)
    with pytest.warns(OctavoWarning, match="'lm_head' shares its weight|shares its weight with"):
        both = octavo.quantize(tied, mode="weight_only", qconfig=rule)
    assert both.lm_head.weight is both.model.embed_tokens.weight  # float, and still one


def test_what_has_no_form_stays_float_and_is_listed() -> None:
    model = language_model("mixtral")
    q = quantized(model, FOUR)
    told = octavo.summary(q).to_dict()["in_python"]
    routers = {f"model.layers.{i}.mlp.gate": "MixtralTopKRouter" for i in (0, 1)}
    assert routers.items() <= told.items()
    opt = octavo.summary(quantized(language_model("opt"), EIGHT)).to_dict()["in_python"]
    assert "model.decoder.embed_positions" in opt


def test_a_file_of_a_mixture(tmp_path: Path) -> None:
    model, given = language_model("mixtral"), prompts("mixtral")
    q = quantized(model, FOUR)
    octavo.save(q, tmp_path / "q.octavo")
    with torch.device("meta"):
        empty = type(model)(model.config)
    empty.generation_config.eos_token_id = None
    loaded = octavo.load(tmp_path / "q.octavo", into=empty)
    assert torch.equal(generated(loaded, given).sequences, generated(q, given).sequences)
    stored, exact = io.BytesIO(), io.BytesIO()
    torch.save(q.state_dict(), stored)
    torch.save(model.state_dict(), exact)
    assert len(stored.getvalue()) < 0.5 * len(exact.getvalue())
