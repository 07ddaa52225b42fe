"""Tables and pictures of `benchmarks/results`, by kind of CPU."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from octavo.reporting.plots import Palette
from website.pictures import panels, titled

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def pages() -> dict[str, str]:
    """A page for each kind of CPU, by its path among the pages."""
    return {f"benchmarks/{kind.name}.md": page_of(kind) for kind in kinds()}


def kinds() -> list[Path]:
    return sorted(folder for folder in RESULTS.iterdir() if folder.is_dir())


def page_of(folder: Path) -> str:
    """All that was measured on a kind of CPU, a table a script."""
    records = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))
    ]
    shown = [record for record in records if record.get("rows")]
    parts = [f"# CPUs of the kind {folder.name}", ABOUT.format(kind=folder.name)]
    if (folder / "speed.json").is_file():
        parts.append(
            f"![Time beside the best peer](speed-{folder.name}-light.svg#only-light)"
            f"![Time beside the best peer](speed-{folder.name}-dark.svg#only-dark)"
        )
    for record in shown:
        parts += [f"## {record['title']}", _machine(record), table(record["rows"])]
    return "\n\n".join(part for part in parts if part)


ABOUT = (
    "Printed by the scripts of `benchmarks/`, on CPUs that have these instructions and no more: "
    "`{kind}`. What each script measures, and how: [Method](method.md). A result that is bad for "
    "us stays in."
)


def _machine(record: dict[str, Any]) -> str:
    """Where and when it was measured."""
    machine = record.get("environment") or record.get("machine") or {}
    words = [str(machine.get(key)) for key in ("cpu", "date") if machine.get(key)]
    threads = machine.get("threads")
    return ", ".join([*words, *([f"{threads} threads"] if threads else [])])


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Rows of plain values as Markdown; what is nested is left to the file."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row if _is_plain(row[key])))
    lines = [f"| {' | '.join(columns)} |", f"|{'|'.join('---' for _ in columns)}|"]
    for row in rows:
        lines.append(f"| {' | '.join(_cell(row.get(column)) for column in columns)} |")
    return "\n".join(lines)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _cell(value: Any) -> str:
    if value is None or not _is_plain(value):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def speed(folder: Path, palette: Palette) -> Figure:
    """Our best time over the best peer's, model by model."""
    rows = json.loads((folder / "speed.json").read_text(encoding="utf-8"))["rows"]
    key = "best of ours / best peer"
    shown = [(row["model"], row[key]) for row in rows if row.get(key)]
    figure, (axes,) = panels(palette, 1, 0.8 + 0.26 * len(shown))
    names, values = zip(*reversed(shown), strict=True)
    axes.barh(names, values, color=palette.first)
    axes.axvline(1.0, color=palette.bad, linewidth=1.4)
    titled(axes, "Time of Octavo / time of the best peer (below 1 is faster)", palette)
    return figure
