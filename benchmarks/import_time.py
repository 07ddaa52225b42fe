"""What `import octavo` adds to `import torch`: fresh processes, in turns.

Bytecode is cached, as pip leaves it behind an installation.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from benchmarks.ratios import Spread
from benchmarks.report import Goal, Report, parsed, parser

LIMIT = 0.3  # seconds
PROGRAMS = {"import torch": "import torch", "import torch, octavo": "import torch, octavo"}


def seconds_of(program: str, bytecode: str) -> float:
    """From the start to the end of a process that runs it.

    Args:
        program: Python code.
        bytecode: folder where compiled modules are kept.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    return time.perf_counter() - started


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    options = parsed(made, words)
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    with tempfile.TemporaryDirectory() as bytecode:
        for program in PROGRAMS.values():
            seconds_of(program, bytecode)  # the disk's cache is warm for both
        names = list(PROGRAMS)
        for _ in range(options.rounds):
            for name in names:
                times[name].append(seconds_of(PROGRAMS[name], bytecode))
            names.reverse()
    added = Spread.of([b - a for a, b in zip(*times.values(), strict=True)])
    spreads = {name: Spread.of(seconds) for name, seconds in times.items()} | {"difference": added}
    report = Report(
        "import_time",
        "Importing, in seconds for a process",
        {"rounds": options.rounds},
        rows=[
            {"program": name, "median s": spread.median, "quartiles": str(spread)}
            for name, spread in spreads.items()
        ],
        goals=[Goal("import octavo adds, s", added.median, LIMIT)],
    )
    report.finish(options.out)


if __name__ == "__main__":
    main()
