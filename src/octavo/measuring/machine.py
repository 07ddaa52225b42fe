"""What the numbers were measured on.

Tested in tests/measuring/test_comparison.py.
"""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def describe_machine() -> dict[str, str]:
    """The CPU's name, the vector instructions torch uses on it, and torch's version."""
    return {
        "cpu": _cpu_name(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "torch": f"torch {torch.__version__}",
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
