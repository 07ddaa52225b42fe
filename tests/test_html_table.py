from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from octavo.html_table import html_table
from octavo.shown import plain


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
