"""What the numbers were measured on.

Tested in tests/measuring/test_comparison.py.
"""

from __future__ import annotations

import torch

from octavo.runtimes import cpu


def describe_machine() -> dict[str, str]:
    """The CPU's name, the vector instructions torch uses on it, and torch's version."""
    return {
        "cpu": cpu.name(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "torch": f"torch {torch.__version__}",
    }
