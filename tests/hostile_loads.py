"""Files whose checksum is right but whose content is not, loaded and run. A script for
`fuzzing.run`, in a folder that has the good files.
"""

from __future__ import annotations

import sys
import warnings
from functools import cache
from pathlib import Path

import fuzzing
import hostile_files
import load_files
import torch

FOLDER = Path(sys.argv[1])


@cache
def good(name: str) -> tuple[hostile_files.Metadata, hostile_files.Tensors]:
    return hostile_files.read(FOLDER / f"{name}.octavo")


def outcome(seed: int) -> str:
    """``runs``, ``error`` (one of Octavo's), or what is wrong."""
    name = sorted(hostile_files.EXAMPLES)[seed % len(hostile_files.EXAMPLES)]
    path = FOLDER / "hostile.octavo"
    altered = hostile_files.hostile(*good(name), seed // len(hostile_files.EXAMPLES))
    hostile_files.write(path, *altered)
    torch.manual_seed(seed)
    how = load_files.outcome(path, hostile_files.EXAMPLES[name]())
    return "code was run" if (FOLDER / "canary").exists() else how


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.zeros(2, device="meta").softmax(0)  # imports what torch's own answers need
    fuzzing.serve(outcome, {"runs", "error"})
