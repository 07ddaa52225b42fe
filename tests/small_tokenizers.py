"""A small tokenizer, trained on Python's documentation, and small models that it fits."""

from __future__ import annotations

import functools
from pydoc_data import topics
from typing import Any

import pytest

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
