from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from octavo.rich_table import rich_table
from octavo.shown import plain


def shown(*arguments: object, width: int = 200) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None).print(rich_table(*arguments))
    return buffer.getvalue()


@given(st.text(st.characters(), min_size=1, max_size=8))
def test_no_word_is_markup(word: str) -> None:
    text = shown(["name", word], [[word, "1"]], f"of {word}")
    for line in text.splitlines():
        assert line.isprintable()
    assert plain(word).strip() in text
    marked = f"[red]{word}[/]"
    assert plain(marked) in shown(["name"], [[marked]])


def test_long_words_are_folded() -> None:
    text = shown(["name"], [["a" * 50]], "", width=30)
    assert text.count("a") == 50 + 1  # and the title's


def test_numbers_stand_to_the_right() -> None:
    assert "│    1 │" in shown(["name", "long"], [["a", "1"]], "", [1])
