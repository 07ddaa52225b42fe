"""The figures of the last `octavo demo` (`make demo`), against what the demo promises."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Goal, Report, parsed, parser

BUILD = Path(__file__).parents[1] / "build" / "demo"


def goals_of(found: dict[str, Any]) -> list[Goal]:
    """The promises: accuracy, size, speed, and the time that it all takes."""
    fp32, bf16, int8 = (found[name] for name in ("fp32", "bf16", "int8"))
    return [
        Goal("seconds after the installation", found["demo"]["seconds"], 180),
        Goal("fp32 top-1, %", fp32["top1"], 97, at_most=False),
        Goal("int8 drop, points", fp32["top1"] - int8["top1"], 0.3),
        Goal("int8 size / fp32 size", int8["size_mb"] / fp32["size_mb"], 0.27),
        Goal("int8 time / fp32 time", int8["latency_ms"] / fp32["latency_ms"], 1.0),
        Goal("int8 time / bf16 time", int8["latency_ms"] / bf16["latency_ms"], 1.0),
    ]


def main(words: Sequence[str] | None = None) -> None:
    """Read comparison.json and report."""
    made = parser(__doc__)
    made.add_argument("--folder", type=Path, default=BUILD, help="default: build/demo")
    options = parsed(made, words)
    file = options.folder / "comparison.json"
    if not file.exists():
        print(f"{file} is not there: run `make demo` first")
        return
    found = json.loads(file.read_text())
    report = Report(
        "demo",
        "The demo",
        {"file": file.name, "threads": found.get("threads"), "batch": found.get("batch_size")},
    )
    for name in ("fp32", "bf16", "int8"):
        columns = ("size_mb", "top1", "latency_ms", "p95_ms", "speedup", "sqnr_db")
        report.rows.append({"model": name} | {key: found[name].get(key) for key in columns})
    report.goals = goals_of(found)
    report.finish(options.out)


if __name__ == "__main__":
    main()
