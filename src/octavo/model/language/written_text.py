"""`WrittenText`: text out of tokens, as they come, until a word that ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BEFORE = 6  # tokens of the prompt, which tell a tokenizer whether a word begins
_CUT = "\ufffd"  # what bytes of a character are shown as before the last one has come


class WrittenText:
    """The text behind a prompt, a token at a time.

    A character of several tokens comes when its last token has. Text that may be the beginning of a
    stop word waits until it is known.

    Args:
        tokenizer: of transformers.
        prompt: the tokens before the text.
        stop: words before which the text ends.

    Attributes:
        stopped: whether one of them has come.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, stop
        self._tokens = list(prompt[-_BEFORE:])
        self._start, self._shown = 0, len(self._tokens)  # where decoding starts; what came out
        self._waiting = ""

    def push(self, token: int) -> str:
        """The text that is certain now, and was not before; often none."""
        self._tokens.append(token)
        before, after = self._decoded(self._shown), self._decoded(len(self._tokens))
        if after.endswith(_CUT) or len(after) <= len(before):
            return ""
        self._start, self._shown = self._shown, len(self._tokens)
        return self._passed(after[len(before) :])

    def finish(self) -> str:
        """What still waits when no token comes any more."""
        if self.stopped:
            return ""
        rest = self._decoded(len(self._tokens))[len(self._decoded(self._shown)) :]
        text = self._passed(rest)
        return text if self.stopped else text + self._waiting

    def _decoded(self, end: int) -> str:
        tokens = self._tokens[self._start : end]
        return str(
            self._tokenizer.decode(
                tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _passed(self, text: str) -> str:
        """What of it is no part of a stop word."""
        text, self._waiting = self._waiting + text, ""
        ends = [place for word in self._stop if (place := text.find(word)) >= 0]
        if ends:
            self.stopped = True
            return text[: min(ends)]
        held = max((_begun(text, word) for word in self._stop), default=0)
        cut = len(text) - held
        self._waiting = text[cut:]
        return text[:cut]


def _begun(text: str, word: str) -> int:
    """How many characters at the end of a text are the first ones of a word.

    Example:
        >>> _begun("and then, E", "END"), _begun("and", "END")
        (1, 0)
    """
    longest = min(len(word) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(word[:n])), 0)
