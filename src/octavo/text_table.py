"""Rows of words as lines whose columns line up."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.shown import plain


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
