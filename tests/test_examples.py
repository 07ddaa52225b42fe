"""The examples run, and go on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import octavo

ROOT = Path(__file__).parents[1]
COMMAND = [
    *(sys.executable, "-m", "examples.qat_digits", "--networks", "demo", "--bits", "4"),
    *("--epochs", "2", "--float-epochs", "1", "--views", "1"),
]


def _run(out: Path) -> dict[str, object]:
    done = subprocess.run([*COMMAND, "--out", str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads((out / "results.json").read_text())["demo"]
    return found


@pytest.mark.sweep
def test_training_with_rounding_goes_on_after_a_kill(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = _run(whole)
    running = subprocess.Popen(
        [*COMMAND, "--out", str(killed)], cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ}
    )
    checkpoint = killed / "demo-4.checkpoint"
    started = time.monotonic()
    while not checkpoint.exists():
        assert running.poll() is None
        assert time.monotonic() - started < 300
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (killed / "results.json").exists()
    assert _run(killed) == expected
    assert len(expected["4 bits"]["by epoch"]) == 2  # type: ignore[call-overload, index]
    assert (killed / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert octavo.load(killed / "demo-4.octavo").provenance["trained"] == "with rounding"
