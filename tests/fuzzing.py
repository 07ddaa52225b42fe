"""Foreign calls and hostile files by the thousand, in processes that they may kill.

``python tests/fuzzing.py [COUNT [FIRST]]`` runs COUNT of each (100,000 without) and prints what is
wrong: a signal, more time or memory than the bounds below, or an exception that is not Octavo's.
Each is made from its number alone, which is printed: COUNT 1 and the number as FIRST runs it again.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 30  # for one
MEMORY = 2 * 2**30  # bytes of address space beyond what the process has at its start
TESTS = Path(__file__).parent


@dataclass
class Found:
    """How many ended how, and a line for each that is wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def run(script: str, folder: Path, first: int, count: int) -> Found:
    """What came of ``count`` seeds, from ``first`` on; behind one that kills, in a new process."""
    found, seed, end = Found(), first, first + count
    progress = folder / "progress"
    while seed < end:
        progress.write_text(f"{seed:<12}")
        command = [sys.executable, str(TESTS / script), str(folder), str(seed), str(end - seed)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        for line in done.stdout.splitlines():
            kind, _, rest = line.partition(" ")
            if kind == "counts":
                name, number = rest.rsplit(" ", 1)
                found.counts[name] += int(number)
            else:
                found.wrong.append(line)
        if done.returncode == 0:
            return found
        seed = int(progress.read_text()) + 1
        last = (done.stderr.splitlines() or [""])[-1]
        found.wrong.append(f"{seed - 1} ended the process: {done.returncode} {last[:200]}")
    return found


def serve(outcome: Callable[[int], str], right: set[str]) -> None:
    """In the child: the outcome of each seed, within limits."""
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    counts: Counter[str] = Counter()
    with (folder / "progress").open("r+b", buffering=0) as file:
        for seed in range(first, first + count):
            file.seek(0)
            file.write(f"{seed:<12}".encode())
            signal.alarm(SECONDS)
            how = outcome(seed)
            counts[how if how in right else "wrong"] += 1
            if how not in right:
                print(seed, how, flush=True)  # noqa: T201
    for how, number in counts.items():
        print("counts", how, number)  # noqa: T201


def main(count: int = 100_000, first: int = 0) -> int:
    """All kinds; the exit status is 1 where anything is wrong."""
    import hostile_files

    bad = False
    for script in ("hostile_calls.py", "hostile_loads.py"):
        with tempfile.TemporaryDirectory() as folder:
            hostile_files.write_bases(Path(folder))
            found = run(script, Path(folder), first, count)
        print(script, dict(found.counts))  # noqa: T201
        print(*found.wrong, sep="\n")  # noqa: T201
        bad |= bool(found.wrong)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
