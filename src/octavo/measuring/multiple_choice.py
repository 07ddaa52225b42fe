"""Multiple choice by likelihood: a language model takes the answer that it finds most likely.

Tested in tests/measuring/test_multiple_choice.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.arguments import BATCHES, FUNCTION, expect
from octavo.display import Result, Table
from octavo.errors import InputError
from octavo.measuring.metrics import logits_of
from octavo.measuring.significance import wilson


@dataclass(frozen=True)
class Question:
    """A text, and how it may go on.

    Attributes:
        context: tokens of the text, int64 ``[T]``, one at least.
        choices: tokens of each way to go on, int64 ``[C]`` of any lengths.
        answer: which of the choices is right.

    Example:
        >>> Question(torch.tensor([0, 1]), [torch.tensor([2]), torch.tensor([4])], answer=0).answer
        0
    """

    context: Tensor
    choices: Sequence[Tensor]
    answer: int


@dataclass(frozen=True)
class MultipleChoice(Result):
    """What `multiple_choice` found. Prints as a table.

    Attributes:
        accuracy: percent of the questions of which the most likely choice is the right one, by the
            sum of the logarithms of the likelihoods of its tokens.
        per_token: the same by their mean, which long choices do not lose by.
        chosen: of each question, which choice was the most likely one, by the sum.
        interval: of the accuracy, 95 %, in percent.

    Example:
        >>> print(MultipleChoice(75.0, 50.0, (0, 1, 1, 0), (30.1, 95.4)))
        4 questions
        accuracy  95 %          per token
        75.0 %    30.1 to 95.4  50.0 %
    """

    accuracy: float
    per_token: float
    chosen: tuple[int, ...]
    interval: tuple[float, float]

    def table(self) -> Table:
        low, high = self.interval
        row = (f"{self.accuracy:.1f} %", f"{low:.1f} to {high:.1f}", f"{self.per_token:.1f} %")
        return Table(("accuracy", "95 %", "per token"), (row,), f"{len(self.chosen)} questions")


def multiple_choice(
    model: Callable[[Tensor], Any], questions: Iterable[Question]
) -> MultipleChoice:
    """How often a causal language model finds the right one of several texts the most likely.

    Args:
        model: takes token ids ``[1, T]`` and returns logits ``[1, T, V]``, or what has them.
        questions: each is answered by one call for each of its choices.

    Raises:
        InputError: there are no questions, one has no context, no such answer or an empty choice,
            or the model returns other logits, or a NaN.

    Example:
        >>> follows = lambda ids: 9.0 * torch.nn.functional.one_hot((ids + 1) % 5, 5).float()
        >>> questions = [Question(torch.tensor([0, 1]), [torch.tensor([2]), torch.tensor([4])], 0)]
        >>> multiple_choice(follows, questions).accuracy
        100.0
    """
    expect(FUNCTION, model=model)
    expect(BATCHES, questions=questions)
    right, chosen, by_mean = 0, list[int](), 0
    for number, question in enumerate(questions):
        _check(question, number)
        sums = [_likelihood(model, question.context, choice) for choice in question.choices]
        if any(map(math.isnan, sums)):
            raise InputError(
                f"the model's logits of question {number} are not numbers (NaN): its weights may "
                "be damaged"
            )
        means = [s / len(c) for s, c in zip(sums, question.choices, strict=True)]
        chosen.append(max(range(len(sums)), key=sums.__getitem__))
        right += chosen[-1] == question.answer
        by_mean += max(range(len(means)), key=means.__getitem__) == question.answer
    if not chosen:
        raise InputError("there are no questions: give at least one octavo.Question")
    count = len(chosen)
    low, high = wilson(right, count)
    return MultipleChoice(
        100 * right / count, 100 * by_mean / count, tuple(chosen), (100 * low, 100 * high)
    )


def _check(question: Any, number: int) -> None:
    """Raise for what is no question.

    Raises:
        InputError: it names what is wrong.
    """
    if not isinstance(question, Question):
        raise InputError(
            f"question {number} is a {type(question).__name__}: give octavo.Question(context, "
            "choices, answer)"
        )
    texts = [question.context, *question.choices]
    fits = all(
        isinstance(t, Tensor) and t.dim() == 1 and len(t) and not t.is_floating_point()
        for t in texts
    )
    if not fits or not 0 <= question.answer < len(question.choices):
        raise InputError(
            f"question {number} has to have a context and choices of one token or more, int64 "
            f"[T], and an answer among its {len(question.choices)} choices, not {question.answer}"
        )


def _likelihood(model: Callable[[Tensor], Any], context: Tensor, choice: Tensor) -> float:
    """The logarithm of the likelihood of a choice behind its context."""
    tokens = torch.cat([context, choice.to(context.device)])
    with torch.no_grad():
        logits = logits_of(model(tokens[None, :-1]))
    if logits is None or logits.shape[:-1] != (1, len(tokens) - 1):
        found = "none" if logits is None else list(logits.shape)
        raise InputError(
            f"the model returns no logits [1, {len(tokens) - 1}, V] of {len(tokens) - 1} tokens, "
            f"but {found}"
        )
    scores = logits[0, -len(choice) :].double().log_softmax(-1)
    return float(scores.gather(1, choice.to(scores.device)[:, None]).sum())
