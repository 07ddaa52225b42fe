"""Rows of words as lines whose columns line up."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """The rows as text, two spaces between columns.

    Example:
        >>> print(text_table([("layer", "dB"), ("conv1", "41.0")]))
        layer  dB
        conv1  41.0
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(lines)
