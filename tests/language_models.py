"""Language models of transformers with random weights, and what a quantized one is held against."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.model.parts import parts_of

transformers = pytest.importorskip("transformers")

PAD, FIRST, LAST = 0, 1, 63
_TOKENS = {"vocab_size": 64, "pad_token_id": PAD, "bos_token_id": FIRST, "eos_token_id": LAST}
_SIZES = {
    **_TOKENS,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_WIDE = {**_GROUPED, "head_dim": 16}
_OPT = {"hidden_size": 64, "ffn_dim": 128, "word_embed_proj_dim": 64, "num_hidden_layers": 2}
_T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
_WHISPER = {
    "num_mel_bins": 16,
    "d_model": 64,
    **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 128 for part in ("encoder", "decoder")},
    "max_source_positions": 30,
    "max_target_positions": 64,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}

# name -> class of the model, that of its config, and what the config is made of
MODELS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED),
    "llama, tied": ("LlamaForCausalLM", "LlamaConfig", {**_GROUPED, "tie_word_embeddings": True}),
    "qwen 2": ("Qwen2ForCausalLM", "Qwen2Config", _GROUPED),
    "qwen 3": ("Qwen3ForCausalLM", "Qwen3Config", _WIDE),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**_GROUPED, "sliding_window": 8}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _WIDE),
    "gemma 2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {**_WIDE, "sliding_window": 8, "attn_logit_softcapping": 3.0},
    ),
    "gemma 3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**_WIDE, "sliding_window": 8}),
    "phi": ("PhiForCausalLM", "PhiConfig", _SIZES),
    "phi 3": ("Phi3ForCausalLM", "Phi3Config", _GROUPED),
    "gpt 2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {**_TOKENS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    ),
    "gpt neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _SIZES),
    "opt": ("OPTForCausalLM", "OPTConfig", {**_TOKENS, **_OPT, "num_attention_heads": 4}),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {**_TOKENS, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_GROUPED, "num_local_experts": 4}),
    "qwen 3, experts": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**_WIDE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    ),
    "t5": ("T5ForConditionalGeneration", "T5Config", {**_TOKENS, **_T5}),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", {**_TOKENS, **_WHISPER}),
}
_ENCODED = {"t5": PAD, "whisper": 2}  # what begins the decoder's text


def texts(count: int = 4, **more: Any) -> list[dict[str, Tensor]]:
    """Batches of four texts of chance, always the same."""
    torch.manual_seed(3)
    return [{"input_ids": torch.randint(3, 60, (4, 12)), **more} for _ in range(count)]


def rounded_by(model: nn.Module, *methods: octavo.WeightMethod, **options: Any) -> Any:
    """Its layers by methods, in four bits unless the options say otherwise; silent."""
    four = octavo.weight_only_qconfig(4, group_size=32)
    settings = {"mode": "weight_only", "qconfig": four, "scope": "modules", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        return octavo.quantize(model, weights=methods, progress=False, **settings)


def language_model(name: str) -> Any:
    """One of `MODELS`; its generation does not end before it is told to."""
    model, config, settings = MODELS[name]
    start = {"decoder_start_token_id": _ENCODED[name]} if name in _ENCODED else {}
    torch.manual_seed(0)
    net = getattr(transformers, model)(getattr(transformers, config)(**settings, **start)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:  # larger than at the start of training: tokens that differ
                parameter.normal_(0, 0.2)
    net.generation_config.eos_token_id = None
    return net


def prompts(name: str, length: int = 7) -> dict[str, Tensor]:
    """Two, of which the second is shorter, with padding on its left."""
    if name == "whisper":
        return {"input_features": torch.randn(2, 16, 60)}
    ids = torch.randint(3, LAST, (2, length))
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


def oracle(quantized: nn.Module, model: nn.Module) -> Any:
    """The float model, with the weights that the quantized one stands for."""
    exact = copy.deepcopy(model)
    with torch.no_grad():
        for path, part in parts_of(quantized).items():
            layer = exact.get_submodule(path)
            for name, floats in part.dequantized().items():
                is_turned = getattr(part, "transposed", False) and name == "weight"
                layer.get_parameter(name).copy_(floats.t() if is_turned else floats)
    return exact


def generated(model: Any, given: Mapping[str, Tensor], **how: Any) -> Any:
    """Tokens, and the logits of each step."""
    settings = {"max_new_tokens": 10, "do_sample": False, "output_logits": True}
    return model.generate(**given, **settings, return_dict_in_generate=True, **how)


def assert_same_tokens(ours: Any, exact: Any) -> None:
    """Of two generations, but for what float arithmetic itself leaves open: the first token of a
    row may differ where the exact logits of the two are nearly the same.
    """
    steps = len(exact.logits)
    for row in range(len(exact.sequences)):
        pairs = zip(ours.sequences[row, -steps:], exact.sequences[row, -steps:], strict=True)
        for step, (own, right) in enumerate(pairs):
            if own != right:
                logits = exact.logits[step][row]
                near = (logits[right] - logits[own]) / logits.std()
                assert near < 2e-3, f"row {row}, step {step}: {own} for {right}, {near} away"
                break
