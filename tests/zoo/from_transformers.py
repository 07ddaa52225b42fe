"""Small networks of transformers with random weights, with their outputs as they are by default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoo.entry import Call, Entry, padding_mask, tokens

WORDS, LENGTH, WIDTH = 120, 32, 48


def text(batch: int, length: int = LENGTH) -> dict[str, Any]:
    return {
        "input_ids": tokens(batch, length, WORDS),
        "attention_mask": padding_mask(batch, length),
    }


def short_text(batch: int) -> Call:
    return text(batch, 20)


def words(batch: int) -> Call:
    return {"input_ids": tokens(batch, LENGTH, WORDS)}


def text_to_text(batch: int) -> Call:
    return text(batch) | {"decoder_input_ids": tokens(batch, 9, WORDS)}


def images(batch: int) -> Call:
    return {"pixel_values": torch.randn(batch, 3, 32, 32)}


def spectrum(batch: int) -> Call:
    return {
        "input_features": torch.randn(batch, 80, 100),
        "decoder_input_ids": tokens(batch, 9, WORDS),
    }


def sound(batch: int) -> Call:
    return {"input_values": torch.randn(batch, 4000)}


_SIZES = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}
_TWO_HALVES = {
    "vocab_size": WORDS,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
}
_WHISPER = {
    **_TWO_HALVES,
    "max_source_positions": 50,
    "max_target_positions": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
}
_BART = {**_TWO_HALVES, "max_position_embeddings": 64}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_SEGFORMER = {
    "hidden_sizes": [16, 32, 48, 64],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 3, 4],
    "decoder_hidden_size": 32,
}
_WAV2VEC2 = {
    "conv_dim": [32] * 3,
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


@dataclass(frozen=True)
class _Row:
    """A model's class in transformers, what its configuration takes, and how it is called."""

    model: str
    config: str
    options: dict[str, Any]
    example: Callable[[int], Call] = text

    def make(self) -> nn.Module:
        import transformers

        config = getattr(transformers, self.config)(**self.options)
        network: nn.Module = getattr(transformers, self.model)(config)
        return network


_ROWS: dict[str, _Row] = {
    "bert": _Row("BertForSequenceClassification", "BertConfig", _SIZES),
    "distilbert": _Row(
        "DistilBertForTokenClassification",
        "DistilBertConfig",
        {"vocab_size": WORDS, "dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 96},
    ),
    "roberta": _Row("RobertaForMaskedLM", "RobertaConfig", _SIZES),
    "albert": _Row("AlbertModel", "AlbertConfig", {**_SIZES, "embedding_size": 16}),
    "electra": _Row(
        "ElectraForSequenceClassification", "ElectraConfig", {**_SIZES, "embedding_size": 16}
    ),
    "deberta_v2": _Row(
        "DebertaV2ForSequenceClassification", "DebertaV2Config", {**_SIZES, **_DEBERTA}
    ),
    "mobilebert": _Row(
        "MobileBertForQuestionAnswering",
        "MobileBertConfig",
        {**_SIZES, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    ),
    "gpt2": _Row(
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": WORDS,
            "n_embd": WIDTH,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "llama": _Row("LlamaForCausalLM", "LlamaConfig", {**_SIZES, "num_key_value_heads": 2}),
    "t5": _Row(
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": WORDS,
            "d_model": WIDTH,
            "d_kv": 12,
            "d_ff": 96,
            "num_layers": 2,
            "num_heads": 4,
        },
        text_to_text,
    ),
    "vit": _Row(
        "ViTForImageClassification",
        "ViTConfig",
        {**_SIZES, "image_size": 32, "patch_size": 8},
        images,
    ),
    "whisper": _Row("WhisperForConditionalGeneration", "WhisperConfig", _WHISPER, spectrum),
    "wav2vec2": _Row("Wav2Vec2ForCTC", "Wav2Vec2Config", {**_SIZES, **_WAV2VEC2}, sound),
    "hubert": _Row("HubertForCTC", "HubertConfig", {**_SIZES, **_WAV2VEC2}, sound),
    "bart": _Row("BartForConditionalGeneration", "BartConfig", _BART, text_to_text),
    "fnet": _Row("FNetForSequenceClassification", "FNetConfig", _SIZES, words),
    "convbert": _Row(
        "ConvBertForSequenceClassification", "ConvBertConfig", {**_SIZES, "embedding_size": 48}
    ),
    "qwen2": _Row("Qwen2ForCausalLM", "Qwen2Config", _GROUPED),
    "gemma": _Row("GemmaForCausalLM", "GemmaConfig", {**_GROUPED, "head_dim": 12}),
    "gpt_neox": _Row("GPTNeoXForCausalLM", "GPTNeoXConfig", _SIZES),
    "opt": _Row(
        "OPTForCausalLM",
        "OPTConfig",
        {**_SIZES, "ffn_dim": 96, "word_embed_proj_dim": WIDTH},
    ),
    "segformer": _Row("SegformerForSemanticSegmentation", "SegformerConfig", _SEGFORMER, images),
    "dinov2": _Row(
        "Dinov2ForImageClassification",
        "Dinov2Config",
        {**_SIZES, "image_size": 32, "patch_size": 8},
        images,
    ),
}

ENTRIES = tuple(
    Entry(name, "transformers", row.make, row.example, short_text if row.example is text else None)
    for name, row in _ROWS.items()
)
