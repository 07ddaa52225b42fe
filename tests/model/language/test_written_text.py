"""Text of tokens as they come: together what the tokenizer makes of them, up to a stop word."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import tokenizer

from octavo.model.language.written_text import WrittenText


def pieces(
    tokens: list[int], stop: tuple[str, ...] = (), prompt: tuple[int, ...] = ()
) -> list[str]:
    text = WrittenText(tokenizer(), prompt, stop)
    found = []
    for token in tokens:
        found.append(text.push(token))
        if text.stopped:
            return found
    return [*found, text.finish()]


@settings(max_examples=40)
@given(st.text(max_size=30), st.text(max_size=10))
def test_the_pieces_are_the_text(text: str, before: str) -> None:
    tokens, prompt = (tokenizer()(part)["input_ids"] for part in (text, before))
    assert "".join(pieces(tokens, prompt=tuple(prompt))) == text


def test_a_character_of_several_tokens_comes_when_it_is_whole() -> None:
    tokens = tokenizer()("a🎉b")["input_ids"]
    found = pieces(tokens)
    assert len(tokens) > 4
    assert [piece for piece in found if piece] == ["a", "🎉", "b"]


def test_bytes_that_are_no_character_are_told_at_the_end() -> None:
    cut = tokenizer()("🎉")["input_ids"][:-1]
    assert pieces(cut)[-1] == "\ufffd"
    assert set(pieces(cut)[:-1]) == {""}


@settings(max_examples=40)
@given(
    st.text(alphabet="abEND .", max_size=40),
    st.lists(st.sampled_from(["END", "EN", "a b", "DE"]), min_size=1, max_size=2, unique=True),
)
def test_it_ends_before_the_first_stop_word(text: str, stop: list[str]) -> None:
    found = pieces(tokenizer()(text)["input_ids"], tuple(stop))
    joined = "".join(found)
    assert not any(word in joined for word in stop)
    assert text.startswith(joined)
    cuts = [place for word in stop if (place := text.find(word)) >= 0]
    if not cuts:
        assert joined == text
    elif "EN" not in stop or "END" not in stop:
        assert len(joined) in cuts


def test_what_may_begin_a_stop_word_waits() -> None:
    text = WrittenText(tokenizer(), (), ("END",))
    found = [
        text.push(token) for token in tokenizer()("a EN", add_special_tokens=False)["input_ids"]
    ]
    assert "".join(found) == "a "
    assert text.finish() == "EN"
    assert not text.stopped


@pytest.mark.parametrize("token", [0])
def test_special_tokens_are_no_text(token: int) -> None:
    assert "".join(pieces([*tokenizer()("a")["input_ids"], token])) == "a"
