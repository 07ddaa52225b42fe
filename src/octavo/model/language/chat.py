"""Messages of a conversation as the prompt of a model.

Tested in tests/cli/test_language_models.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.errors import InputError, first_line


def prompt_of(messages: Sequence[Mapping[str, Any]], tokenizer: Any) -> list[int]:
    """The tokens of a conversation, by the tokenizer's template, up to where the assistant begins.

    Args:
        messages: each with ``role`` and ``content``, in order.
        tokenizer: of transformers.

    Raises:
        InputError: there is no template, or it refuses these messages.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError(
            "the tokenizer has no chat template: the model is none for conversations. Give a "
            "prompt of plain text"
        )
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # of the template, which is a program of the model's makers
        raise InputError(
            f"the chat template takes no such messages: {first_line(error)}"
        ) from error
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
