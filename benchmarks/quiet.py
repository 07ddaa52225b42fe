"""How much of the machine others use: times of a busy machine are not recorded."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 3.0  # that a look at the machine takes
MOST_CORES = 0.15  # that others may be busy with
TRIES = 3  # what begins now and then, as an update does, is waited for
BUSY = 75  # the exit status, EX_TEMPFAIL of sysexits.h: try again later
# Of a line of /proc/stat, after the name: user, nice, system, irq and softirq.
_BUSY_COLUMNS = (1, 2, 3, 6, 7)


@dataclass
class Others:
    """Cores that other processes are busy with, on average since this was made.

    On a system without /proc/stat nothing is known of them, and it is 0.
    """

    _began: float = field(default_factory=time.perf_counter)
    _spent: float = field(default_factory=lambda: _busy_seconds() - _own_seconds())

    def cores(self) -> float:
        spent = _busy_seconds() - _own_seconds() - self._spent
        return max(0.0, spent / (time.perf_counter() - self._began))


def cores_of_others(seconds: float = SECONDS) -> float:
    """Measured while this process sleeps."""
    others = Others()
    time.sleep(seconds)
    return others.cores()


def busy() -> str:
    """What is in the way of measuring, as a sentence; ``""`` where the machine is quiet."""
    for _ in range(TRIES):
        cores = cores_of_others()
        if is_quiet(cores):
            return ""
    return refusal(cores)


def is_quiet(cores: float) -> bool:
    return cores <= MOST_CORES


def refusal(cores: float) -> str:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"other processes keep {cores:.2f} cores busy (at most {MOST_CORES:g} are allowed; load "
        f"averages {load}): times would be wrong, and are not recorded. Let them end, and run the "
        "same again: what is measured already is not measured again"
    )


def _own_seconds() -> float:
    """Of this process, and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _busy_seconds() -> float:
    """Of the CPUs that this process may run on, since the machine was started."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return _own_seconds()
    mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    rows = [line.split() for line in lines if line.split()[0] in mine]
    return sum(int(row[i]) for row in rows for i in _BUSY_COLUMNS) / os.sysconf("SC_CLK_TCK")
