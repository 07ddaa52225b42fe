"""How results are shown to people: text that is safe to print, tables, JSON's numbers, progress.

A name of a layer, a file or a class may hold anything: escape sequences that write a terminal's
title or clear it, marks that turn the direction of writing, half characters that cannot be printed.
Every text that is shown goes through `plain`, and every table here sees to it.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")
_NUMBER = re.compile(r"[-+]?[\d.]")


def plain(text: str, keep: str = "") -> str:
    r"""The text with what cannot be printed spelled out, as `repr` does it.

    Args:
        text: any.
        keep: characters that stay all the same, such as line ends.

    Example:
        >>> print(plain("conv\x1b[2J"))
        conv\x1b[2J
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _spelled(c) for c in text)


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode()


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """The rows as text, two spaces between columns.

    Example:
        >>> print(text_table([("layer", "dB"), ("conv1", "41.0")]))
        layer  dB
        conv1  41.0
    """
    words = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*words, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in words
    )
    return "\n".join(lines)


def rich_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str = "",
    right: Collection[int] = (),
) -> Table:
    """A table of rich's. No word is markup to it, and long ones are folded, not cut off.

    Args:
        columns: the titles.
        rows: a row may have fewer cells.
        title: above the table.
        right: numbers of the columns that are aligned to the right.

    Example:
        >>> rich_table(["layer", "dB"], [["user[id]", "41.0"]], right=[1]).row_count
        1
    """
    from rich.table import Table
    from rich.text import Text

    above = Text(plain(title, "\n"), style="table.title") if title else None
    table = Table(title=above, title_justify="left")
    for index, column in enumerate(columns):
        heading = Text(plain(column))
        table.add_column(heading, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    return table


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table; columns of numbers are aligned to the right. All text is escaped.

    Example:
        >>> print(html_table(["layer", "dB"], [["conv<1>", "41.0"]]))
        <table class="octavo">
        <thead><tr><th scope="col">layer</th><th scope="col" class="number">dB</th></tr></thead>
        <tbody>
        <tr><td>conv&lt;1&gt;</td><td class="number">41.0</td></tr>
        </tbody>
        </table>
    """
    body = [list(row) for row in rows]
    numeric = [_is_number(row[index] for row in body) for index in range(len(columns))]
    lines = ['<table class="octavo">']
    if caption:
        words = escape(plain(caption, "\n"))
        lines.append(f"<caption>{words}</caption>")
    head = (_cell("th", ' scope="col"', *pair) for pair in zip(columns, numeric, strict=True))
    lines += [f"<thead><tr>{''.join(head)}</tr></thead>", "<tbody>"]
    for row in body:
        cells = (_cell("td", "", *pair) for pair in zip(row, numeric, strict=True))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody>", "</table>"])


def _cell(tag: str, attributes: str, text: str, number: bool) -> str:
    # Notebooks have no style sheet of ours.
    shape = ' class="number"' if number else ""
    return f"<{tag}{attributes}{shape}>{escape(plain(text))}</{tag}>"


def _is_number(cells: Iterable[str]) -> bool:
    words = [cell for cell in cells if cell not in ("", "-", "equal", "inf", "nan")]
    return bool(words) and all(_NUMBER.match(word) for word in words)


def finite(data: Any) -> Any:
    """Dicts, lists and tuples with ``None`` for each number that is infinite or NaN.

    Example:
        >>> finite({"sqnr_db": [float("inf"), 41.0]})
        {'sqnr_db': [None, 41.0]}
    """
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def track(items: Iterable[T], description: str, enabled: bool = True) -> Iterator[T]:
    """Yield the items, with a bar on standard error where that is a terminal."""
    if not (enabled and sys.stderr.isatty()):
        yield from items
        return
    from rich.console import Console
    from rich.markup import escape as escape_markup
    from rich.progress import track as rich_track

    words = escape_markup(plain(description))
    yield from rich_track(items, words, console=Console(stderr=True), transient=True)
