"""``octavo tune``, measured for real on a small model: what it keeps, not how fast that is."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import octavo_command
from torch import nn

import octavo
from octavo.model import tunings
from octavo.runtimes import cpu
from octavo.runtimes.tuning import search
from octavo.runtimes.tuning.gain import Gain

FRESH = """
import sys, torch, octavo
octavo.runtimes.fastest.interleave = None
q = octavo.load(sys.argv[1])
(tuning,) = q.tunings.values()
print(q.variant == tuning.best, tuning.finished, q.lowered.agreement.agrees)
torch.save(q(torch.load(sys.argv[2])), sys.argv[3])
"""


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    data, target = [torch.randn(2, 3, 8, 8)], octavo.host_target()
    path = tmp_path / "m.octavo"
    octavo.quantize(net, calibration=data, target=target, progress=False).save(path)
    return path


@pytest.mark.sweep
def test_a_file_is_tuned_and_a_fresh_process_runs_it_so(artifact: Path, tmp_path: Path) -> None:
    plain = octavo.load(artifact)
    np.savez(tmp_path / "data.npz", input=torch.randn(8, 3, 8, 8).numpy())
    answer = octavo_command(
        *("tune", artifact, "--budget", "1", "--runtimes", "torch", "--batch", "1"),
        *("--data", tmp_path / "data.npz"),
    )
    assert answer.code == 0, answer.err
    for words in ("tuned for this kind of CPU: torch", cpu.kind(), "runtime and sizes", "kept in"):
        assert words in answer.out
    x, y = tmp_path / "x.pt", tmp_path / "y.pt"
    torch.save(torch.randn(5, 3, 8, 8), x)
    done = subprocess.run(
        [sys.executable, "-c", FRESH, artifact, x, y], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True", "True"], done.stderr
    made = torch.load(y)
    assert torch.allclose(made, octavo.load(artifact)(torch.load(x)), atol=1e-4)
    assert torch.allclose(made, plain(torch.load(x)), atol=0.2)


def test_json_and_another_file(artifact: Path, tmp_path: Path) -> None:
    before, out = artifact.read_bytes(), tmp_path / "tuned.octavo"
    command = ("tune", artifact, "--budget", "0.1", "--runtimes", "torch", "-o", out, "--json")
    found = json.loads(octavo_command(*command).out)
    assert found["finished"]
    assert found["best"]["runtime"] == "torch"
    assert artifact.read_bytes() == before
    assert octavo.load(out).variant is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--budget", "0"), "budget=0.0: give seconds, more than 0"),
        (("--budget", "-3"), "budget=-3.0"),
        (("--runtimes", "nope"), "there is no runtime 'nope'"),
        (("--runtimes", "reference"), "which the others are compared with"),
    ],
)
def test_mistakes(artifact: Path, options: tuple[str, ...], said: str) -> None:
    before = artifact.read_bytes()
    answer = octavo_command("tune", artifact, *options)
    assert answer.code == 1
    assert said in answer.err
    assert artifact.read_bytes() == before


def test_a_file_of_parts_says_what_to_do(tmp_path: Path) -> None:
    q = octavo.quantize(nn.Sequential(nn.Linear(4, 4)), scope="modules", progress=False)
    octavo.save(q, tmp_path / "parts.octavo")
    answer = octavo_command("tune", tmp_path / "parts.octavo")
    assert answer.code == 1
    assert 'octavo.lower(model, "fastest", tune=True)' in answer.err


def test_interrupted_before_anything_was_found_it_says_so(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **how: Any) -> Any:
        raise KeyboardInterrupt

    before = artifact.read_bytes()
    monkeypatch.setattr(tunings, "tune", partial(search.tune, measure=interrupted))
    answer = octavo_command("tune", artifact, "--runtimes", "torch")
    assert answer.code == 130
    assert f"interrupted before anything was found: {artifact} is as it was" in answer.err
    assert artifact.read_bytes() == before


def test_what_was_found_before_an_interruption_is_kept(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def interrupted(runs: Any, *args: Any, **how: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return dict.fromkeys(runs, Gain(1.0))

    monkeypatch.setattr(tunings, "tune", partial(search.tune, measure=interrupted))
    answer = octavo_command("tune", artifact, "--runtimes", "torch")
    assert answer.code == 130
    assert "not finished" in answer.out
    assert "the same command goes on" in " ".join(answer.out.split())  # paths may be long
    (begun,) = octavo.load(artifact).tunings.values()
    assert not begun.finished
    again = octavo_command("tune", artifact, "--runtimes", "torch")
    assert again.code == 0
    (found,) = octavo.load(artifact).tunings.values()
    assert found.finished
    assert found.trials[: len(begun.trials)] == begun.trials
