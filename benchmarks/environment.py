"""What the numbers were measured on: CPU, instruction sets, threads, load, versions, date."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import octavo
from benchmarks import cpu_kinds
from octavo.measuring.machine import describe_machine

# What decides the speed and, without VNNI, the correctness of int8 on x86.
_FLAGS = "avx2 avx_vnni avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8".split()
_PACKAGES = "octavo torch torchvision numpy scikit-learn".split()
# Variables that change which kernels run, or on how many cores.
_VARIABLES = (
    "OMP_NUM_THREADS OMP_WAIT_POLICY ONEDNN_MAX_CPU_ISA ATEN_CPU_CAPABILITY KMP_AFFINITY".split()
)


def kind() -> str:
    """The kind of CPU that this process runs on or acts out: the folder of its results."""
    return cpu_kinds.kind(cpu_flags(), os.environ)


def facts() -> dict[str, object]:
    """JSON-able; ``load`` is the number of busy processes in the minute before."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": describe_machine()["cpu"],
        "kind": kind(),
        "isa": [flag for flag in _FLAGS if flag in cpu_flags()],
        "torch_isa": describe_machine()["isa"],
        "host_target": octavo.host_target(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "versions": {"python": platform.python_version()} | _versions(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def in_one_line(facts: dict[str, object]) -> str:
    """The facts that a table needs below it."""
    versions = facts["versions"]
    assert isinstance(versions, dict)
    return (
        f"{facts['cpu']}, {'/'.join(map(str, facts['isa'] or ['-']))}, {facts['cores']} cores, "  # type: ignore[call-overload]
        f"{facts['threads']} threads, load {facts['load']}; torch {versions['torch']}, "
        f"octavo {versions['octavo']}; {facts['date']}"
    )


def cpu_flags() -> set[str]:
    """What /proc/cpuinfo says of the first CPU; nothing where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
