"""A language model that writes into its cache: regions, `generate`, a file into the meta device."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision_shim  # noqa: F401  (before what imports torchvision)
from transformers import AutoModelForCausalLM, GPT2Config

import octavo
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
