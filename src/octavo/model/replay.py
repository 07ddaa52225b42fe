"""Run a file again on recorded inputs, in a process that knows nothing else of the model.

``python -m octavo.model.replay MODEL.octavo RECORD.safetensors`` loads the artifact, runs the
recorded inputs and prints as JSON whether it answers what was recorded.

Tested in tests/cli/demo/test_demo.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from octavo.errors import ArtifactError
from octavo.model.loading import load


@dataclass(frozen=True)
class Replay:
    """How the answers of a fresh process differ: class decisions, and the largest difference."""

    samples: int
    different_predictions: int
    max_difference: float


def replay_in_fresh_process(path: str | Path, inputs: Tensor, outputs: Tensor) -> Replay:
    """Load the artifact in a new Python process and compare its answers with ``outputs``.

    Args:
        path: the artifact.
        inputs: the model's only argument.
        outputs: what this process answered, class scores ``[N, C]``.

    Raises:
        ArtifactError: the other process failed; the message is its last line.
    """
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        record = Path(folder, "record.safetensors")
        save_file({"inputs": inputs.contiguous(), "outputs": outputs.contiguous()}, record)
        search_path = os.pathsep.join(entry for entry in sys.path if entry)
        done = subprocess.run(
            [sys.executable, "-m", "octavo.model.replay", str(path), str(record)],
            env=os.environ | {"PYTHONPATH": search_path},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        reason = next(iter(done.stderr.strip().splitlines()[-1:]), "no message")
        raise ArtifactError(f"{path} does not run in a fresh process: {reason}")
    return Replay(**json.loads(done.stdout.splitlines()[-1]))


def replay(path: str, record: str) -> Replay:
    """Run the recorded inputs through the artifact, in this process."""
    model, recorded = load(path), load_file(record)
    with torch.no_grad():
        answers = model(recorded["inputs"])
    wanted = recorded["outputs"]
    return Replay(
        samples=len(wanted),
        different_predictions=int((answers.argmax(1) != wanted.argmax(1)).sum()),
        max_difference=float((answers - wanted).abs().max()),
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(replay(*sys.argv[1:3]))) + "\n")
