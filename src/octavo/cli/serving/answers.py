"""What a server says, in OpenAI's form: whole texts, pieces of them, errors.

Tested in tests/cli/serving/test_app.py.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

END_OF_STREAM = "data: [DONE]\n\n"


@dataclass(frozen=True)
class Answer:
    """The answer to one request.

    Attributes:
        model: its name.
        chat: whether it is a message of a conversation.
        prompt_tokens: of the request.
    """

    model: str
    chat: bool
    prompt_tokens: int
    created: int = field(default_factory=lambda: int(time.time()))
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def whole(self, text: str, why: str, tokens: int) -> dict[str, Any]:
        """The whole text, and why it ended."""
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._frame(kind, said, why), "usage": self.usage(tokens)}

    def first(self) -> dict[str, Any] | None:
        """What a stream begins with: in a conversation, who speaks."""
        said = {"delta": {"role": "assistant", "content": ""}}
        return self._frame("chat.completion.chunk", said, None) if self.chat else None

    def piece(self, text: str) -> dict[str, Any]:
        """Some more text of a stream."""
        if self.chat:
            return self._frame("chat.completion.chunk", {"delta": {"content": text}}, None)
        return self._frame("text_completion", {"text": text}, None)

    def last(self, why: str) -> dict[str, Any]:
        """The end of a stream, and why."""
        if self.chat:
            return self._frame("chat.completion.chunk", {"delta": {}}, why)
        return self._frame("text_completion", {"text": ""}, why)

    def usage_alone(self, tokens: int) -> dict[str, Any]:
        """What follows the end of a stream, if it was asked for."""
        return {**self.last(""), "choices": [], "usage": self.usage(tokens)}

    def usage(self, tokens: int) -> dict[str, int]:
        """Tokens read and written."""
        total = self.prompt_tokens + tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": total,
        }

    def _frame(self, kind: str, said: dict[str, Any], why: str | None) -> dict[str, Any]:
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": why}
        name = "chatcmpl" if self.chat else "cmpl"
        return {
            "id": f"{name}-{self.key}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": [choice],
        }


def event(data: dict[str, Any]) -> str:
    """One event of a stream, as browsers read them."""
    return f"data: {json.dumps(data)}\n\n"


def error_of(
    message: str, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def model_list(name: str, created: int) -> dict[str, Any]:
    """The one model that is served."""
    return {"object": "list", "data": [model_of(name, created)]}


def model_of(name: str, created: int) -> dict[str, Any]:
    """What there is to say of it."""
    return {"id": name, "object": "model", "created": created, "owned_by": "octavo"}
