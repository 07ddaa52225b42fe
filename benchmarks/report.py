"""How every benchmark ends: a Markdown table on the screen and a JSON file beside the scripts."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Goal:
    """A number with a limit: ``value`` has to be at most, or at least, ``limit``."""

    name: str
    value: float | None
    limit: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        found = "not measured" if self.value is None else f"{self.value:.3f}"
        side = "at most" if self.at_most else "at least"
        return f"{'met' if self.met else 'MISSED'}: {self.name}: {found} ({side} {self.limit:g})"


@dataclass
class Report:
    """What one benchmark found.

    Attributes:
        name: of the script and of the JSON file.
        title: above the table.
        settings: what was measured, JSON-able.
        rows: the table; a column is a key, and the rows need not have all of them.
        goals: the numbers that decide.
        notes: what a reader must know to read the table.
        details: for the JSON file alone.
    """

    name: str
    title: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=environment.facts)

    def to_dict(self) -> dict[str, Any]:
        goals = [asdict(goal) | {"met": goal.met} for goal in self.goals]
        found: dict[str, Any] = _finite(asdict(self) | {"goals": goals})
        return found

    def __str__(self) -> str:
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        lines = [f"## {self.title}", "", markdown(self.rows), ""]
        lines += [f"- {goal}" for goal in self.goals]
        lines += [f"- {note}" for note in self.notes]
        return "\n".join([*lines, "", settings, environment.in_one_line(self.machine)])

    def resume(self, folder: Path) -> None:
        """Take over rows and details of an earlier run, if it had these settings."""
        file = folder / f"{self.name}.json"
        found = json.loads(file.read_text()) if file.exists() else {"settings": None}
        if found["settings"] == self.settings:
            self.rows, self.details = found["rows"], found["details"]

    def write(self, folder: Path) -> Path:
        """Write ``<name>.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.name}.json"
        file.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
        return file

    def finish(self, folder: Path) -> None:
        """Print it and write ``<name>.json``."""
        print(f"{self}\n\nwritten to {self.write(folder)}", flush=True)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that the scripts share."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--threads", type=int, help="of torch; as torch chooses without it")
    made.add_argument(
        "--out",
        type=Path,
        default=RESULTS / environment.kind(),
        help="folder for the JSON file; without it, that of this kind of CPU",
    )
    return made


def parsed(made: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """The options, with the number of threads set."""
    options = made.parse_args(words)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return options


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table whose columns line up; numbers to the right."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(key)) for key in columns] for row in rows]
    numeric = [all(_is_number(row.get(key)) for row in rows) for key in columns]
    widths = [max(len(line[i]) for line in (columns, *cells)) for i in range(len(columns))]

    def line(words: Sequence[str]) -> str:
        padded = (
            word.rjust(width) if right else word.ljust(width)
            for word, width, right in zip(words, widths, numeric, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * (width - 1) + (":" if right else "-")
        for width, right in zip(widths, numeric, strict=True)
    ]
    return "\n".join([line(columns), line(rule), *map(line, cells)])


def write_table(text: str, path: Path) -> None:
    """Put a Markdown table in the place of the one in a file that has the same first cell."""
    lines = path.read_text(encoding="utf-8").split("\n")
    start = [_first_cell(line) for line in lines].index(_first_cell(text))
    stop = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
    lines[start:stop] = text.split("\n")
    path.write_text("\n".join(lines), encoding="utf-8")


def problem(error: Exception) -> str:
    """An error as a cell of a table."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first[:160]}"


def _first_cell(text: str) -> str | None:
    return text.split("|")[1].strip() if text.startswith("|") else None


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
    return str(value)


def _finite(tree: Any) -> Any:
    """JSON knows no infinity: what is infinite or NaN becomes text."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return str(tree) if isinstance(tree, float) and not math.isfinite(tree) else tree
