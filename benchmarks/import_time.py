"""What `import octavo`, and a first `load` behind it, add to `import torch`.

In fresh processes, in turns. Bytecode is cached, as pip leaves it behind an installation. What is
loaded is a ResNet-18 with random weights.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import octavo
from benchmarks.ratios import Spread
from benchmarks.report import Goal, Report, parsed, parser

from benchmarks import nets  # isort: skip  # noqa: F401  (it finds the zoo)
import zoo  # isort: skip

IMPORT_LIMIT, LOAD_LIMIT = 0.3, 0.5  # seconds
PROGRAMS = {
    "import torch": "import torch",
    "import torch, octavo": "import torch, octavo",
    "the same, and octavo.load": "import sys, torch, octavo; octavo.load(sys.argv[1])",
}


def save_model(path: Path) -> None:
    """The file that is loaded."""
    entry = zoo.BY_NAME["resnet18"]
    example = torch.randn(1, 3, 224, 224)
    q = octavo.quantize(
        entry.build(), calibration=[example], target=octavo.host_target(), progress=False
    )
    q.save(path)


def seconds_of(program: str, bytecode: str, model: Path) -> float:
    """From the start to the end of a process that runs it.

    Args:
        program: Python code.
        bytecode: folder where compiled modules are kept.
        model: a file of Octavo's, the program's argument.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program, model], check=True, env=environment)
    return time.perf_counter() - started


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    options = parsed(made, words)
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    with tempfile.TemporaryDirectory() as bytecode:
        model = Path(bytecode, "model.octavo")
        save_model(model)
        for program in PROGRAMS.values():
            seconds_of(program, bytecode, model)  # the disk's cache is warm for all
        names = list(PROGRAMS)
        for _ in range(options.rounds):
            for name in names:
                times[name].append(seconds_of(PROGRAMS[name], bytecode, model))
            names.reverse()
    alone, *others = times.values()
    imported, loaded = (
        Spread.of([b - a for a, b in zip(alone, other, strict=True)]) for other in others
    )
    spreads = {name: Spread.of(seconds) for name, seconds in times.items()}
    spreads |= {"import octavo adds": imported, "import and first load add": loaded}
    report = Report(
        "import_time",
        "Importing and the first load, in seconds for a process",
        {"rounds": options.rounds},
        rows=[
            {"program": name, "median s": spread.median, "quartiles": str(spread)}
            for name, spread in spreads.items()
        ],
        goals=[
            Goal("import octavo adds, s", imported.median, IMPORT_LIMIT),
            Goal("import octavo and a first load add, s", loaded.median, LOAD_LIMIT),
        ],
    )
    report.finish(options.out)


if __name__ == "__main__":
    main()
