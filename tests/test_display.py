from __future__ import annotations

import io
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import octavo
from octavo.display import Table, Tabular, plain
from octavo.errors import ArtifactError, InputError, OctavoError, OctavoWarning


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


def test_a_notebook_shows_the_lines_of_its_own_that_led_to_an_error() -> None:
    with pytest.raises(ArtifactError) as caught:
        octavo.load("missing.octavo")
    place, message = caught.value._render_traceback_()
    assert place.startswith(f'  File "{__file__}", line')
    assert place.endswith('octavo.load("missing.octavo")')
    assert message == f"octavo.errors.ArtifactError: {caught.value}"


def printed(table: Table, width: int = 200) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None).print(table)
    return buffer.getvalue()


TABLE = Table(
    ("layer", "dB", "p"),
    (("1", "41.0", "-"), ("user[id]|x", "-3", ""), ("c", "inf", "-")),
    "a < b",
    ("one note", "another"),
)


def test_as_text() -> None:
    assert str(TABLE).splitlines() == [
        "a < b",
        "layer       dB    p",
        "1           41.0  -",
        "user[id]|x  -3",
        "c           inf   -",
        "one note",
        "another",
    ]


def test_in_a_terminal() -> None:
    lines = printed(TABLE).splitlines()
    assert (lines[0], lines[-2:]) == ("a < b", ["one note", "another"])
    assert "│ user[id]|x │   -3 │   │" in lines


def test_in_markdown() -> None:
    assert TABLE.to_markdown().splitlines() == [
        "a < b",
        "",
        "| layer | dB | p |",
        "|---|---:|---|",
        "| 1 | 41.0 | - |",
        r"| user[id]\|x | -3 |  |",
        "| c | inf | - |",
        "",
        "one note",
        "",
        "another",
    ]


def test_in_a_notebook() -> None:
    html = TABLE._repr_html_()
    assert html.startswith('<table class="octavo">\n<caption>a &lt; b</caption>\n<thead>')
    assert html.count('class="number"') == 4  # the heading of dB and its three cells
    assert html.endswith('</table>\n<p class="note">one note</p>\n<p class="note">another</p>')


def test_as_dicts() -> None:
    assert TABLE.to_dicts()[1] == {"layer": "user[id]|x", "dB": "-3", "p": ""}


def test_what_is_tabular_shows_its_table() -> None:
    class Result(Tabular):
        def table(self) -> Table:
            return TABLE

    result = Result()
    assert (str(result), result._repr_html_()) == (str(TABLE), TABLE._repr_html_())
    assert (printed(result), result.to_markdown()) == (printed(TABLE), TABLE.to_markdown())


def test_without_rows_the_title_is_shown_alone() -> None:
    table = Table(("layer",), (), "nothing\n< 1")
    assert printed(table) == "nothing\n< 1\n"
    assert table._repr_html_() == "<p>nothing<br>&lt; 1</p>"


@given(st.text(st.characters(), min_size=1, max_size=8))
def test_no_word_is_markup(word: str) -> None:
    text = printed(Table(("name", word), ((word, "1"),), f"of {word}"))
    for line in text.splitlines():
        assert line.isprintable()
    assert plain(word).strip() in text
    marked = f"[red]{word}[/]"
    assert plain(marked) in printed(Table(("name",), ((marked,),)))


def test_long_words_are_folded() -> None:
    text = printed(Table(("name",), (("a" * 50,),)), width=30)
    assert text.count("a") == 50 + 1  # and the heading's


def test_names_that_are_numbers_stand_to_the_left() -> None:
    assert Table(("layer", "dB"), (("0", "41.0"), ("1", "40.0"))).right == {1}


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
    parser.feed(Table(("a", "b"), tuple(rows))._repr_html_())
    assert parser.cells == ["a", "b", *(plain(word) for row in rows for word in row)]
    assert set(parser.tags) == {"table", "thead", "tr", "th", "tbody", "td"}
