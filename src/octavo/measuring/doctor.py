"""What this CPU and these packages can do, and what would make models faster here."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from octavo.display import Result, Table
from octavo.errors import MissingExtra
from octavo.numerics.native import library
from octavo.runtimes import cpu
from octavo.runtimes.runtime import RUNTIMES
from octavo.version import __version__

_LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", library.LIMIT)
# Package -> its extra, and what it is for. Runtimes say this of themselves.
_EXTRAS = {
    "matplotlib": ("plots", "pictures"),
    "jinja2": ("report", "the report as a page"),
    "PIL": ("images", "folders of images as data"),
    "transformers": ("transformers", "language models"),
    "fastapi": ("serve", "a server of language models"),
    "libcst": ("migrate", "octavo migrate"),
}
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: was looked at.
        found: what it is.
        advice: what would be better, and how; ``""`` where nothing would.
    """

    what: str
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis(Result):
    """All that was looked at.

    Attributes:
        findings: in the order of what matters.
    """

    findings: tuple[Finding, ...]

    @property
    def advice(self) -> list[str]:
        """What to do, the most useful first."""
        return [finding.advice for finding in self.findings if finding.advice]

    def table(self) -> Table:
        rows = tuple((finding.what, finding.found) for finding in self.findings)
        advice = tuple(f"- {words}" for words in self.advice)
        notes = ("Advice:", *advice) if advice else ("Nothing to advise.",)
        return Table(("", "here"), rows, notes=notes)


def examine() -> Diagnosis:
    """Look at the CPU, the threads, the kernels, the runtimes and the packages of this process.

    Example:
        >>> examine().findings[0].what
        'CPU'
    """
    return Diagnosis((*_of_machine(), *_of_runtimes(), *_of_packages()))


def _of_machine() -> Iterator[Finding]:
    yield Finding("CPU", cpu.name())
    yield _instructions()
    yield Finding("target without target=", cpu.host_target())
    yield _threads(torch.get_num_threads(), usable_cores())
    yield _kernels()
    python = platform.python_version()
    yield Finding("versions", f"octavo {__version__}, torch {torch.__version__}, Python {python}")
    for name in _LIMITS:
        if os.environ.get(name):
            advice = f"unset {name}, which keeps the CPU from using all that it has"
            yield Finding(name, os.environ[name], advice)


def _instructions() -> Finding:
    missing = cpu.missing_kernels()
    if missing:
        return Finding("int8", missing, "install a build of PyTorch for this CPU that has oneDNN")
    extras = [] if cpu.saturates() else ["VNNI"]
    extras += ["bf16"] if cpu.has_bf16() else []
    extras += ["AMX"] if torch.cpu._is_amx_tile_supported() else []
    found = " ".join([torch.backends.cpu.get_cpu_capability(), *extras])
    return Finding("instructions", found)


def usable_cores() -> float:
    """The cores that this process may use: of its affinity, and by the quota of a container."""
    if hasattr(os, "sched_getaffinity"):
        cores = float(len(os.sched_getaffinity(0)))
    else:
        cores = float(os.cpu_count() or 1)
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else min(cores, int(quota) / int(period))


def _threads(threads: int, cores: float) -> Finding:
    advice = ""
    if threads > cores:
        number = max(1, int(cores))
        advice = (
            f"set OMP_NUM_THREADS={number}: {threads} threads fight for {cores:g} cores, which is "
            "slower than fewer threads"
        )
    elif threads == 1 and cores > 1:
        advice = (
            f"torch.set_num_threads({int(cores)}) makes single calls faster; one thread is right "
            "where as many calls run at once"
        )
    return Finding("threads", f"{threads} of torch's, {cores:g} cores to use", advice)


def _kernels() -> Finding:
    if library.library() is not None:
        return Finding("Octavo's kernels", library.instruction_set() or "for every CPU")
    return Finding("Octavo's kernels", "none", library.NOTE.format(layers="many layers"))


def _of_runtimes() -> Iterator[Finding]:
    for name in RUNTIMES:
        try:
            package = RUNTIMES[name].package
            if package is not None:
                package()
        except MissingExtra as error:
            advice = f'pip install "octavo[{error.extra}]" brings the runtime {name}'
            yield Finding(f"runtime {name}", "is not installed", advice)
        else:
            yield Finding(f"runtime {name}", "ready")


def _of_packages() -> Iterator[Finding]:
    for package, (extra, purpose) in _EXTRAS.items():
        if importlib.util.find_spec(package) is not None:
            yield Finding(purpose, "ready")
        else:
            yield Finding(purpose, "is not installed", f'pip install "octavo[{extra}]": {purpose}')
