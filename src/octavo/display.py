"""How results are shown to people: text that is safe to print, tables, JSON.

A name of a layer, a file or a class may hold anything: escape sequences that write a terminal's
title or clear it, marks that turn the direction of writing, half characters that cannot be printed.
Every text that is shown goes through `plain`, and every table here sees to it.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group, JustifyMethod, RenderableType

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


def percent(share: float) -> str:
    """A share in words; neither all nor nothing where it is not quite that.

    Example:
        >>> percent(0.9996), percent(0.973), percent(0.004)
        ('99.9 %', '97 %', '0.4 %')
    """
    if 0.01 <= share < 0.995 or share in (0, 1):
        return f"{100 * share:.0f} %"
    return "under 0.1 %" if share < 0.001 else f"{min(99.9, 100 * share):.1f} %"


def together(said: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names and what is said of them, those together of which the same is.

    Example:
        >>> list(together({"a": "float", "b": "int8", "c": "float", "d": "float"}))
        [('a, c and 1 more', 'float'), ('b', 'int8')]
    """
    names: dict[str, list[str]] = {}
    for name, words in said.items():
        names.setdefault(words, []).append(name)
    for words, alike in names.items():
        shown, more = ", ".join(alike[:_SHOWN]), len(alike) - _SHOWN
        yield (f"{shown} and {more} more" if more > 0 else shown), words


_SHOWN = 2  # names


@dataclass(frozen=True)
class Table:
    """What a result shows: as text, in rich's terminals, in notebooks, in Markdown, as dicts.

    No word is markup to any of them, and none is cut off.

    Attributes:
        columns: the headings.
        rows: the cells of each row; the first one names it.
        title: above the table, of any number of lines.
        notes: below it.

    Example:
        >>> print(Table(("layer", "dB"), (("conv1", "41.0"),), "SQNR"))
        SQNR
        layer  dB
        conv1  41.0
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()

    @property
    def right(self) -> frozenset[int]:
        """The columns of numbers, which are aligned to the right."""
        cells = enumerate(zip(*self.rows, strict=True))
        return frozenset(index for index, column in cells if index and _are_numbers(column))

    def to_dicts(self) -> list[dict[str, str]]:
        """A dict for each row, by the headings."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def __str__(self) -> str:
        words = [[plain(cell) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*words, strict=True)]
        lines = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in words
        )
        return "\n".join([*self._title(), *lines, *self._notes()])

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid()
        for index, column in enumerate(self.columns):
            justify: JustifyMethod = "right" if index in self.right else "left"
            grid.add_column(Text(plain(column)), justify=justify, overflow="fold")
        for row in self.rows:
            grid.add_row(*(Text(plain(cell)) for cell in row))
        title = (Text(line, style="table.title") for line in self._title())
        notes = (Text(line, style="dim") for line in self._notes())
        return Group(*title, *([grid] if self.rows else []), *notes)

    def _repr_html_(self) -> str:
        titles = [_broken(title) for title in self._title()]
        notes = [f'<p class="note">{_broken(note)}</p>' for note in self._notes()]
        if not self.rows:
            return "\n".join([*(f"<p>{title}</p>" for title in titles), *notes])
        lines = ['<table class="octavo">', *(f"<caption>{title}</caption>" for title in titles)]
        head = "".join(self._html("th", self.columns, ' scope="col"'))
        lines += [f"<thead><tr>{head}</tr></thead>", "<tbody>"]
        lines += [f"<tr>{''.join(self._html('td', row))}</tr>" for row in self.rows]
        return "\n".join([*lines, "</tbody>", "</table>", *notes])

    def _html(self, tag: str, cells: Iterable[str], attributes: str = "") -> Iterator[str]:
        for index, cell in enumerate(cells):
            # Notebooks have no style sheet of ours.
            shape = ' class="number"' if index in self.right else ""
            yield f"<{tag}{attributes}{shape}>{escape(plain(cell))}</{tag}>"

    def to_markdown(self) -> str:
        """In GitHub's Markdown."""
        rules = ("---:" if index in self.right else "---" for index in range(len(self.columns)))
        rows = (self._markdown(row) for row in self.rows)
        table = "\n".join([self._markdown(self.columns), f"|{'|'.join(rules)}|", *rows])
        title = (line.replace("\n", "  \n") for line in self._title())  # which keeps line ends
        return "\n\n".join([*title, table, *self._notes()])

    def _markdown(self, cells: Iterable[str]) -> str:
        return f"| {' | '.join(plain(cell).replace('|', chr(92) + '|') for cell in cells)} |"

    def _title(self) -> list[str]:
        return [plain(self.title, "\n")] if self.title else []

    def _notes(self) -> list[str]:
        return [plain(note, "\n") for note in self.notes]


class Tabular(ABC):
    """A result that shows itself as a table, wherever it is shown."""

    @abstractmethod
    def table(self) -> Table:
        """What is shown."""

    def to_markdown(self) -> str:
        """The table in GitHub's Markdown."""
        return self.table().to_markdown()

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self) -> RenderableType:
        return self.table()

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


@dataclass(frozen=True)
class Result(Tabular):
    """What was found: a table for people, and data for machines."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data; what is infinite is ``None``."""
        fields: dict[str, Any] = finite(asdict(self))
        return fields

    def to_json(self) -> str:
        """The same as text."""
        return json.dumps(finite(self.to_dict()), indent=1)


def _broken(text: str) -> str:
    """Text as HTML, with its line ends."""
    return escape(text).replace("\n", "<br>")


def _are_numbers(cells: Iterable[str]) -> bool:
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
