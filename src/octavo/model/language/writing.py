"""Causal language models write on: several texts in one batch, which each may join and leave.

A step of the batch is a call of the model. Either it reads a part of a prompt that has come, or it
writes the next token of every text that is under way; the two take turns, so that a long prompt
does not keep the others waiting. A text is the one that it would be alone: it has its own row of
the cache, its own positions and its own dice, and sees no other. What the others change is how
many rows a kernel has, and with that the last bits of its sums.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.errors import InputError, OctavoError
from octavo.model.language.choosing import Choice
from octavo.model.language.side_by_side import SideBySide
from octavo.model.language.written_text import WrittenText

_PART = 256  # tokens of a prompt in one call


class Writing:
    """One text that is written.

    Args:
        prompt: its tokens, at least one.
        most: tokens to write at most.
        choice: how each is chosen.
        text: what the tokens become.
        tell: called with each new piece of text, from where the batch runs.

    Attributes:
        tokens: those written so far, without the one that ended the text.
        ended: why it ended: ``"stop"`` (the model's own end, or a stop word), ``"length"`` or
            ``"error"``; ``None`` while it goes on.
        error: what went wrong with it.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        most: int,
        choice: Choice,
        text: WrittenText,
        tell: Callable[[str], None],
    ) -> None:
        self.prompt, self.most, self.choice = list(prompt), most, choice
        self.tokens: list[int] = []
        self.ended: str | None = None
        self.error: OctavoError | None = None
        self.read = 0  # tokens of the prompt that the model has read
        self._text, self._tell, self._dice = text, tell, choice.dice()

    @property
    def is_read(self) -> bool:
        """Whether the model has read the whole prompt."""
        return self.read == len(self.prompt)

    def take(self, logits: Tensor, ends: frozenset[int]) -> None:
        """The next token, of the logits of the last place."""
        try:
            token = self.choice.pick(logits, self._dice)
        except OctavoError as error:  # which is this text's alone
            self.ended, self.error = "error", error
            return
        if token in ends:
            self._end("stop")
            return
        self.tokens.append(token)
        self._pass_on(self._text.push(token))
        if self._text.stopped:
            self.ended = "stop"
        elif len(self.tokens) >= self.most:
            self._end("length")

    def _end(self, why: str) -> None:
        self._pass_on(self._text.finish())
        self.ended = "stop" if self._text.stopped else why

    def _pass_on(self, text: str) -> None:
        if text:
            self._tell(text)


class Batch:
    """The texts that a model writes at a time.

    Args:
        model: a causal language model of transformers, quantized or not, in evaluation mode.
        int8_cache: keys and values are kept in int8, see `Int8Cache`.

    Attributes:
        limit: so many tokens a prompt and its text may have together; ``None`` without a limit.
        writings: the texts under way, in the order in which they came.

    Raises:
        InputError: the model keeps other than keys and values of its tokens.
    """

    def __init__(self, model: Any, int8_cache: bool = False) -> None:
        self.model = model
        self.cache = SideBySide(model.config, int8_cache)
        self.limit = _limit_of(model.config, self.cache.limit)
        self.writings: list[Writing] = []
        self._ends = _ends_of(model)
        takes = inspect.signature(model.forward).parameters
        self._keep = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._has_positions = "position_ids" in takes
        self._read_last = False  # whether the last step read a prompt

    def room(self, prompt: Sequence[int], most: int | None) -> int:
        """How many tokens may be written behind a prompt.

        Args:
            prompt: its tokens.
            most: how many are asked for; ``None`` for as many as there may be.

        Raises:
            InputError: the prompt is empty, holds what is no token of the model, or leaves less
                room than that.
        """
        if not prompt:
            raise InputError("the prompt is empty: give at least one token to go on from")
        known = self.model.config.get_text_config(decoder=True).vocab_size
        unknown = next((token for token in prompt if not 0 <= token < known), None)
        if unknown is not None:
            raise InputError(
                f"token {unknown} of the prompt is none of the model's {known}: the tokenizer is "
                "that of another model"
            )
        if most is not None and most < 1:
            raise InputError(f"{most} tokens are asked for: ask for at least one")
        if self.limit is None:
            if most is None:
                raise InputError("the model has no limit of its own: say how many tokens to write")
            return most
        left = self.limit - len(prompt)
        if left < (most or 1):
            asked = f", of which {most} tokens more are asked" if most is not None else ""
            raise InputError(
                f"the prompt has {len(prompt)} tokens{asked}; the model takes {self.limit} in all: "
                "shorten the prompt, or ask for fewer"
            )
        return left if most is None else most

    def add(self, writing: Writing) -> None:
        """A text joins; its prompt is read by the next steps."""
        self.cache.append()
        self.writings.append(writing)

    def remove(self, writing: Writing) -> None:
        """A text leaves, whether it has ended or not."""
        row = self.writings.index(writing)
        self.cache.remove(row)
        del self.writings[row]

    def clear(self) -> None:
        """All leave."""
        self.writings.clear()
        self.cache.reset()

    @torch.no_grad()
    def step(self) -> None:
        """One call of the model; what has ended leaves."""
        unread = [row for row, writing in enumerate(self.writings) if not writing.is_read]
        written = unread[0] if unread else len(self.writings)  # those before it write
        if unread and not (written and self._read_last):
            self._read(unread[0])
        elif written:
            self._write(written)
        for writing in [each for each in self.writings if each.ended]:
            self.remove(writing)

    def _read(self, row: int) -> None:
        """The next part of a prompt; behind the last one, the first token of its text."""
        writing = self.writings[row]
        part = writing.prompt[writing.read : writing.read + _PART]
        logits = self._called(row, torch.tensor([part]))
        writing.read += len(part)
        self._read_last = True
        if writing.is_read:
            writing.take(logits[0], self._ends)

    def _write(self, count: int) -> None:
        """The next token of each of the first texts."""
        texts = self.writings[:count]
        last = torch.tensor([[writing.tokens[-1]] for writing in texts])
        self._read_last = False
        for writing, logits in zip(texts, self._called(0, last), strict=True):
            writing.take(logits, self._ends)

    def _called(self, first: int, ids: Tensor) -> Tensor:
        """Logits of the last place ``[count, V]`` of some rows' new tokens ``[count, new]``."""
        count, new = ids.shape
        mask, positions = self.cache.begin(first, count, new)
        place = {"position_ids": positions} if self._has_positions else {}
        given = {"input_ids": ids, "attention_mask": mask, **place, **self._keep}
        logits = self.model(**given, past_key_values=self.cache, use_cache=True).logits[:, -1]
        self.cache.end(new)
        return logits  # type: ignore[no-any-return]


def _limit_of(config: Any, window: int | None) -> int | None:
    text = config.get_text_config(decoder=True)
    positions = getattr(text, "max_position_embeddings", None)
    known = [limit for limit in (positions, window) if limit is not None]
    return min(known, default=None)


def _ends_of(model: Any) -> frozenset[int]:
    """The tokens that end a text."""
    given = getattr(model.generation_config, "eos_token_id", None)
    return frozenset(given if isinstance(given, list) else [] if given is None else [given])
