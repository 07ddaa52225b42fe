"""Rows of words as a table for terminals."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from octavo.shown import plain

if TYPE_CHECKING:
    from rich.table import Table


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
