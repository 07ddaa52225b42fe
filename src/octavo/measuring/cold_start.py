"""What a runtime costs beside its speed: seconds to load, and memory, in a process of its own.

``python -m octavo.measuring.cold_start MODEL.octavo RUNTIME MODULE BATCH THREADS`` loads the file,
runs one call on random inputs and prints JSON. The module is what makes the runtime known.

Tested in tests/measuring/test_bench.py.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import torch

from octavo.errors import OctavoError, RuntimeUnavailable
from octavo.model.loading import load
from octavo.runtimes import RUNTIMES
from octavo.runtimes.examples import random_inputs


@dataclass(frozen=True)
class ColdStart:
    """Of one runtime.

    Attributes:
        load_s: from the file to the first result; the imports of Python packages are not counted.
        memory_mb: megabytes (10**6 bytes) that the process needed at most, beyond what it had
            before the file was opened.
    """

    load_s: float
    memory_mb: float


def cold_start(path: str | Path, runtime: str, *, batch: int = 1, threads: int = 1) -> ColdStart:
    """Load a file and call it once, in a new process.

    Raises:
        RuntimeUnavailable: that process failed, the message is its last line; or it cannot know
            the runtime.
    """
    command = [sys.executable, "-m", "octavo.measuring.cold_start", os.fspath(path), runtime]
    done = subprocess.run(
        [*command, _module_of(runtime), str(batch), str(threads)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if done.returncode:
        last = next(iter(done.stderr.strip().splitlines()[::-1]), "no message")
        raise RuntimeUnavailable(f"{runtime}: {last}")
    return ColdStart(**json.loads(done.stdout.strip().splitlines()[-1]))


def _module_of(runtime: str) -> str:
    """What a new process imports to know the runtime.

    Raises:
        RuntimeUnavailable: it is a script, which cannot be imported.
    """
    if runtime not in RUNTIMES:
        return "octavo.runtimes"
    module = RUNTIMES[runtime].lower.__module__
    if module == "__main__":
        raise RuntimeUnavailable(
            f"the runtime {runtime!r} is defined in a script, which the new process that measures "
            "load time and memory does not run: move it to a module that the script imports"
        )
    return module


def _measure(path: str, runtime: str, module: str, batch: int, threads: int) -> ColdStart:
    torch.set_num_threads(threads)
    _import(runtime, module)
    before = _start_of_peak_mb()
    started = time.perf_counter()
    q = load(path, runtime=runtime)
    with torch.no_grad():
        q.lowered.run(*random_inputs(q.graph, batch))
    return ColdStart(time.perf_counter() - started, peak_mb() - before)


def _import(runtime: str, module: str) -> None:
    """What the runtime is made of, with the Python package that it needs."""
    import_module(module)
    package = RUNTIMES[runtime].package if runtime in RUNTIMES else None
    if package is not None:
        package()


def _start_of_peak_mb() -> float:
    """Forget the peak of the imports, where the system lets us; what is held now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def peak_mb() -> float:
    """The most memory that this process held; counted in kilobytes of 1024 bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main(words: list[str]) -> int:
    """Measure and print; 1 where the runtime cannot run the file."""
    path, runtime, module, batch, threads = words
    try:
        start = _measure(path, runtime, module, int(batch), int(threads))
    except OctavoError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(asdict(start)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
