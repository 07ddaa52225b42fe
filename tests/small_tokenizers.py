"""A small tokenizer, trained on Python's documentation, and small models that it fits."""

from __future__ import annotations

import functools
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest
import torch

VOCABULARY = 512
END = "<|end|>"
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@functools.cache
def tokenizer() -> Any:
    """Byte-level BPE of 512 tokens; token 0 ends a text."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.ByteLevelBPETokenizer()
    texts = [topics.topics[name] for name in sorted(topics.topics)[:8]]
    made.train_from_iterator(
        texts, vocab_size=VOCABULARY, special_tokens=[END], show_progress=False
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, eos_token=END, chat_template=TEMPLATE
    )


def llama(kind: str = "Llama", **sizes: Any) -> Any:
    """A Llama for that tokenizer, or another such decoder, with random weights; it does not end a
    text by itself.
    """
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "eos_token_id": None,
        "bos_token_id": None,
    }
    config = getattr(transformers, f"{kind}Config")(**settings | sizes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.generation_config.eos_token_id = None
    return model


def saved(folder: Path, model: Any = None) -> Path:
    """A folder with such a model, or another, and that tokenizer."""
    (llama() if model is None else model).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
