"""The next token: the most likely one, or one drawn, the same for the same seed."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from octavo.errors import InputError, RuntimeUnavailable
from octavo.model.language.choosing import Choice

LOGITS = torch.tensor([0.5, 0.2, 0.2, 0.1]).log()


def drawn(choice: Choice, count: int = 4000) -> Counter[int]:
    dice = choice.dice()
    return Counter(choice.pick(LOGITS, dice) for _ in range(count))


def test_the_most_likely_one() -> None:
    assert drawn(Choice(), 20) == {0: 20}


def test_tokens_are_drawn_as_likely_as_they_are() -> None:
    found = drawn(Choice(temperature=1.0, seed=1))
    for token, share in enumerate((0.5, 0.2, 0.2, 0.1)):
        assert found[token] / 4000 == pytest.approx(share, abs=0.03)
    cool = drawn(Choice(temperature=0.5, seed=1))  # probabilities squared
    assert cool[0] / 4000 == pytest.approx(0.25 / 0.34, abs=0.03)


def test_top_p_keeps_the_most_likely_ones() -> None:
    assert drawn(Choice(temperature=1.0, top_p=0.5, seed=1)).keys() == {0}
    assert drawn(Choice(temperature=1.0, top_p=0.51, seed=1)).keys() == {0, 1}
    assert drawn(Choice(temperature=1.0, top_p=0.95, seed=1)).keys() == {0, 1, 2, 3}


def test_a_seed_is_a_text() -> None:
    def texts(seed: int | None) -> list[int]:
        choice = Choice(temperature=1.0, seed=seed)
        dice = choice.dice()
        return [choice.pick(torch.zeros(1000), dice) for _ in range(5)]

    assert texts(3) == texts(3)
    assert texts(3) != texts(4)
    assert texts(None) != texts(None)


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": 2**63},
    ],
)
def test_numbers_outside(given: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(given))} is .*: give"):
        Choice(**given)


@pytest.mark.parametrize(
    "logits",
    [[0.0, float("nan")], [0.0, float("inf")], [-float("inf"), -float("inf")]],
)
def test_logits_that_are_no_numbers(logits: list[float]) -> None:
    for choice in (Choice(), Choice(temperature=1.0)):
        with pytest.raises(RuntimeUnavailable, match="not numbers"):
            choice.pick(torch.tensor(logits), choice.dice())


def test_some_tokens_may_be_ruled_out() -> None:
    choice = Choice(temperature=1.0)
    assert choice.pick(torch.tensor([-float("inf"), 0.0]), choice.dice()) == 1
