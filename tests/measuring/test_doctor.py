"""What a machine can do, and the advice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import octavo
from octavo.cli import app
from octavo.errors import MissingExtra
from octavo.measuring import doctor
from octavo.measuring.doctor import Finding, _threads, examine, usable_cores
from octavo.numerics.native import library
from octavo.runtimes.runtime import RUNTIMES, Runtime


def found(what: str) -> Finding:
    return next(finding for finding in examine().findings if finding.what == what)


def test_it_says_what_there_is() -> None:
    assert found("target without target=").found == octavo.host_target()
    assert found("runtime torch") == Finding("runtime torch", "ready")
    assert torch.__version__ in found("versions").found


def test_missing_kernels_and_runtimes_are_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise MissingExtra("onnxruntime", "onnxruntime", "run")

    monkeypatch.setattr(library, "library", lambda: None)
    monkeypatch.setitem(RUNTIMES, "onnxruntime", Runtime(lambda *given: None, package=absent))  # type: ignore[arg-type,return-value]
    assert "with a C compiler" in found("Octavo's kernels").advice
    assert 'pip install "octavo[onnxruntime]"' in found("runtime onnxruntime").advice
    assert examine().advice[0] in str(examine())


@pytest.mark.parametrize(
    ("threads", "cores", "advice"),
    [(64, 2.0, "OMP_NUM_THREADS=2"), (2, 0.5, "OMP_NUM_THREADS=1"), (1, 4.0, "set_num_threads(4)")],
)
def test_threads_that_do_not_fit_the_cores(threads: int, cores: float, advice: str) -> None:
    assert advice in _threads(threads, cores).advice
    assert not _threads(4, 4.0).advice


@pytest.mark.parametrize(("text", "cores"), [("50000 100000", 0.5), ("max 100000", None)])
def test_the_quota_of_a_container(
    text: str, cores: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = usable_cores() if cores is None else cores
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    monkeypatch.setattr(doctor, "_QUOTA", quota)
    assert usable_cores() == whole


def test_a_limit_in_the_environment_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert "unset ATEN_CPU_CAPABILITY" in found("ATEN_CPU_CAPABILITY").advice


def test_the_command() -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 0
    assert {row["what"] for row in json.loads(done.stdout)["findings"]} >= {"CPU", "threads"}
    assert "target without target=" in CliRunner().invoke(app, ["doctor"]).stdout
