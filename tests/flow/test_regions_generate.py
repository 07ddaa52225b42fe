"""A language model that writes into its cache: regions, `generate`, a file into the meta device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision_shim  # noqa: F401  (before what imports torchvision)
from small_transformers import SIZES
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig, StaticCache

import octavo
from octavo.errors import InputError
from octavo.model.parts import parts_of

CONFIG = GPT2Config(
    vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
)


def test_generate_with_a_growing_cache(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG).eval()
    ids = torch.randint(1, 60, (2, 8))
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "min_new_tokens": 4}
    q = octavo.quantize(
        model, calibration=[ids, ids[:, :5]], scope="regions", target=octavo.host_target()
    )
    assert type(q) is type(model)
    blocks = [
        f"transformer.h.{i}.{name}"
        for i in (0, 1)
        for name in ("attn.c_attn", "attn.c_proj", "mlp")
    ]
    assert {*blocks, "lm_head"} <= parts_of(q).keys()
    with torch.no_grad():
        difference = (q(ids).logits - model(ids).logits).norm() / model(ids).logits.norm()
        assert difference < 0.05
        assert q.generate(ids, **settings).shape == (2, 12)
        octavo.save(q, tmp_path / "q.octavo")
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(CONFIG)
        loaded = octavo.load(tmp_path / "q.octavo", into=empty)
        assert torch.equal(loaded(ids).logits, q(ids).logits)
        assert torch.equal(loaded.generate(ids, **settings), q.generate(ids, **settings))


SLIDING = MistralConfig(
    **{**SIZES, "vocab_size": 60, "num_hidden_layers": 2},
    **{"num_key_value_heads": 1, "sliding_window": 6, "bos_token_id": 0, "eos_token_id": 0},
)


@pytest.mark.parametrize("config", [CONFIG, SLIDING], ids=["plain", "sliding"])
@pytest.mark.parametrize("scope", ["regions", "modules"])
def test_generate_with_caches_of_a_fixed_size(config: object, scope: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(1, 60, (2, 8))
    q = octavo.quantize(model, ids, mode="weight_only", scope=scope)
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        growing = q.generate(ids, **settings)
        fixed = q.generate(ids, cache_implementation="static", **settings)
    assert torch.equal(fixed, growing)


def fixed(model: nn.Module, ids: Tensor) -> StaticCache:
    cache = StaticCache(config=model.config, max_cache_len=12)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    return cache


def test_a_cache_of_a_fixed_size_in_the_data_stays_as_it_was() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG).eval()
    ids = torch.randint(1, 60, (2, 8))
    cache = fixed(model, ids)
    batch = {"input_ids": ids[:, :1], "past_key_values": cache}
    q = octavo.quantize(
        model, calibration=[batch] * 9, scope="regions", target=octavo.host_target()
    )
    assert int(cache.get_seq_length()) == 8
    comparison = octavo.compare(model, q, [batch] * 9, metric=lambda *_: 0.0, rounds=1)
    assert comparison["int8"].sqnr_db > 20
    assert int(cache.get_seq_length()) == 8


def test_a_graph_says_which_scope_has_such_caches() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG).eval()
    ids = torch.randint(1, 60, (2, 8))
    with torch.no_grad():
        growing = model(ids).past_key_values
    call = {"input_ids": ids[:, :1], "past_key_values": growing}
    q = octavo.quantize(model, call, mode="dynamic", scope="model")
    with pytest.raises(InputError, match=r"past_key_values is a StaticCache: .*scope=.regions. or"):
        q(input_ids=ids[:, :1], past_key_values=fixed(model, ids))
    with pytest.raises(AttributeError, match=r"no 'generate': quantize it with scope=.modules."):
        q.generate(ids)
