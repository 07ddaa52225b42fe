"""What clients ask for, in OpenAI's form; what is not here is refused, never passed over.

Tested in tests/cli/serving/test_app.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from octavo.errors import optional_import
from octavo.model.language.choosing import Choice

with optional_import("pydantic", "serve", "serve language models"):
    from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_COMPLETION_TOKENS = 16  # OpenAI's, where a completion does not say
_MOST_STOPS = 16  # each is looked for behind every token


def _whole(given: Any) -> Any:
    """What is given, if no text in it has half of a character, which JSON can write and tokenizers
    do not take.

    Raises:
        ValueError: one has.
    """
    parts = given if isinstance(given, list) else [given]
    try:
        for text in (part.text if isinstance(part, Text) else part for part in parts):
            if isinstance(text, str):
                text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half of a character stands alone at {error.start}") from None
    return given


def _few(stop: Any) -> Any:
    """Stop words, if they are not too many.

    Raises:
        ValueError: they are.
    """
    if isinstance(stop, list) and len(stop) > _MOST_STOPS:
        raise ValueError(f"{len(stop)} stop words: give at most {_MOST_STOPS}")
    return stop


class StreamOptions(BaseModel):
    """How a text is streamed."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class _Asked(BaseModel):
    """What both kinds of requests have."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[str | list[str] | None, AfterValidator(_few)] = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    # Of no effect on the text.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    # Only with the value that changes nothing.
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: dict[str, Literal[0]] | None = None

    @property
    def choice(self) -> Choice:
        """How tokens are chosen; OpenAI's temperature is 1 where none is given."""
        temperature = 1.0 if self.temperature is None else self.temperature
        return Choice(temperature, 1.0 if self.top_p is None else self.top_p, self.seed)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop words."""
        words = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(word for word in words if word)

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(_Asked):
    """Of ``/v1/completions``: text to go on from, or its tokens."""

    prompt: Annotated[str | list[int], AfterValidator(_whole)]
    max_tokens: int | None = Field(_COMPLETION_TOKENS, ge=1)
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None

    @property
    def most(self) -> int | None:
        """Tokens to write at most."""
        return self.max_tokens


class Text(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Annotated[str, AfterValidator(_whole)]
    content: Annotated[str | list[Text], AfterValidator(_whole)]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": self.role, "content": text}


class ChatRequest(_Asked):
    """Of ``/v1/chat/completions``: a conversation."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False] | None = None

    @property
    def most(self) -> int | None:
        """Tokens to write at most; ``None`` for as many as the model takes."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
