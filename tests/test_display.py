from __future__ import annotations

import io
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from octavo.display import html_table, plain, rich_table
from octavo.errors import InputError, OctavoError, OctavoWarning


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("conv1.weight", "conv1.weight"),
        ("größe 深 [/x] :smile:", "größe 深 [/x] :smile:"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\x9b2J", r"\x9b2J"),  # one character, the same command
        ("a\u202ecod.exe", r"a\u202ecod.exe"),  # turns the direction
        ("\udcff.octavo", r"\udcff.octavo"),  # a file's name that is no text
        ("\x00\x7f\u2028", r"\x00\x7f\u2028"),
    ],
)
def test_by_hand(text: str, shown: str) -> None:
    assert plain(text) == shown


@given(st.text(st.characters()))
def test_all_of_it_can_be_printed(text: str) -> None:
    assert plain(text).isprintable()
    assert plain(text, "\n").replace("\n", "").isprintable()
    assert plain(text).encode().decode() == plain(text)


def test_errors_and_warnings_are_plain() -> None:
    for kind in (OctavoError, InputError, OctavoWarning):
        assert str(kind("no layer \x1b[2J\nat all")) == "no layer \\x1b[2J\nat all"


def printed(*arguments: object, width: int = 200) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None).print(rich_table(*arguments))
    return buffer.getvalue()


@given(st.text(st.characters(), min_size=1, max_size=8))
def test_no_word_is_markup(word: str) -> None:
    text = printed(["name", word], [[word, "1"]], f"of {word}")
    for line in text.splitlines():
        assert line.isprintable()
    assert plain(word).strip() in text
    marked = f"[red]{word}[/]"
    assert plain(marked) in printed(["name"], [[marked]])


def test_long_words_are_folded() -> None:
    text = printed(["name"], [["a" * 50]], "", width=30)
    assert text.count("a") == 50 + 1  # and the title's


def test_numbers_stand_to_the_right() -> None:
    assert "│    1 │" in printed(["name", "long"], [["a", "1"]], "", [1])


class Cells(HTMLParser):
    """The text of the cells, and the tags."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells and self.tags[-1] in ("td", "th"):
            self.cells[-1] += data.rstrip("\n")


_WORDS = st.text(st.characters(), max_size=12)


@given(st.lists(st.tuples(_WORDS, _WORDS), min_size=1, max_size=4))
def test_whatever_the_words_are_they_stay_words(rows: list[tuple[str, str]]) -> None:
    parser = Cells()
    parser.feed(html_table(["a", "b"], rows))
    assert parser.cells == ["a", "b", *(plain(word) for row in rows for word in row)]
    assert set(parser.tags) == {"table", "thead", "tr", "th", "tbody", "td"}


def test_columns_of_numbers_are_on_the_right() -> None:
    text = html_table(
        ["layer", "dB", "p"], [["a", "41.0", "-"], ["b", "-3", ""], ["c", "inf", "-"]]
    )
    assert text.count('class="number"') == 4  # the header of dB and its three cells


def test_a_caption_is_escaped() -> None:
    assert "<caption>a &lt; b</caption>" in html_table(["x"], [["1"]], "a < b")
