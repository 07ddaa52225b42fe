"""`octavo.multiple_choice`: answers by likelihood."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from language_models import language_model
from torch import Tensor

import octavo
from octavo.errors import InputError
from octavo.measuring.significance import wilson


class Table:
    """A model that knows the odds of each token behind each other one."""

    def __init__(self, odds: Tensor) -> None:
        self.logits = odds.log()

    def __call__(self, ids: Tensor) -> Tensor:
        return self.logits[ids]


ODDS = Table(torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.05, 0.05, 0.9]]))


def question(context: list[int], *choices: list[int], answer: int = 0) -> octavo.Question:
    return octavo.Question(torch.tensor(context), [torch.tensor(c) for c in choices], answer)


def test_likelihoods_by_hand() -> None:
    """0.7 x 0.2 is more than 0.1 x 0.9; by the token 0.3 x 0.3 is less than 0.7 x 0.7 x 0.7."""
    found = octavo.multiple_choice(
        ODDS,
        [
            question([0], [0, 1], [2, 2]),
            question([1], [2], [0, 0, 0, 0, 0, 0, 0, 0, 0], answer=1),
            question([2, 0], [1], [2], answer=1),
        ],
    )
    assert 0.7 * 0.2 > 0.1 * 0.9
    assert 0.1 > 0.5 * 0.7**8
    assert 0.1 < (0.5 * 0.7**8) ** (1 / 9)
    assert found.chosen == (0, 0, 0)
    assert found.accuracy == pytest.approx(100 / 3)
    assert found.per_token == pytest.approx(200 / 3)
    assert found.interval == pytest.approx([100 * end for end in wilson(1, 3)])
    assert "33.3 %" in str(found)


def test_a_model_of_transformers() -> None:
    model, given = language_model("llama"), torch.tensor([5, 9, 3])
    choices = [torch.tensor([7, 8]), torch.tensor([11]), torch.tensor([4, 6, 2])]
    found = octavo.multiple_choice(model, [octavo.Question(given, choices, 0)])
    sums = []
    for choice in choices:
        whole = torch.cat([given, choice])[None]
        labels = whole.clone()
        labels[:, : len(given)] = -100
        with torch.no_grad():
            sums.append(-float(model(whole, labels=labels).loss) * len(choice))
    assert found.chosen == (max(range(3), key=sums.__getitem__),)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ([], "there are no questions"),
        ([question([], [1])], "question 0 has to have a context"),
        ([question([0], [1], answer=1)], "an answer among its 1 choices, not 1"),
        ([question([0], [1]), question([0], [])], "question 1 has to have"),
        ([("text", ["a"])], "question 0 is a tuple"),
    ],
)
def test_what_is_no_question(bad: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        octavo.multiple_choice(ODDS, bad)


def test_logits_that_are_no_numbers() -> None:
    def broken(ids: Tensor) -> Tensor:
        return torch.full((*ids.shape, 8), math.nan)

    with pytest.raises(InputError, match="question 0 are not numbers"):
        octavo.multiple_choice(broken, [question([1], [2], [3])])


def test_other_logits() -> None:
    with pytest.raises(InputError, match=r"returns no logits \[1, 2, V\] of 2 tokens, but none"):
        octavo.multiple_choice(lambda ids: math.inf, [question([0, 1], [1])])
