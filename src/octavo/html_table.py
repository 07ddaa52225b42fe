"""Rows of words as an HTML table, for notebooks and the report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from octavo.shown import plain

_NUMBER = re.compile(r"[-+]?[\d.]")


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
