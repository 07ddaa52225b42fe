"""The benchmarks' own arithmetic, and that every script starts."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.runtimes.timing import Latency

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py") if "def main(" in path.read_text()
)
sys.path.append(str(ROOT))

from benchmarks import cpu_kinds, layers, quiet, speed, speed_table  # noqa: E402
from benchmarks.advice import advised  # noqa: E402
from benchmarks.contest import Contest  # noqa: E402
from benchmarks.kept import Kept  # noqa: E402
from benchmarks.ratios import Spread, ratio  # noqa: E402
from benchmarks.report import Goal, Report, markdown  # noqa: E402

FLAGS = "avx2 avx_vnni avx512bw avx512_vnni avx512_bf16".split()


@pytest.mark.parametrize(
    ("flags", "variables", "name"),
    [
        ([], {}, "other"),
        (["avx2"], {}, "avx2"),
        (FLAGS[:2], {}, "avx2-vnni"),
        (["avx2", "avx512bw"], {}, "avx512"),
        (["avx2", "avx512bw", "avx512_vnni"], {}, "avx512-vnni"),
        (FLAGS, {}, "avx512-vnni-bf16"),
        ([*FLAGS, "amx_int8"], {}, "amx"),
        (FLAGS, {"ONEDNN_MAX_CPU_ISA": "avx2"}, "avx2-acted-out"),
        (FLAGS, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "avx512-acted-out"),
        (FLAGS, {"ONEDNN_MAX_CPU_ISA": "SSE41"}, "sse41-acted-out"),
        (FLAGS, {"ONEDNN_MAX_CPU_ISA": "ALL"}, "avx512-vnni-bf16"),
        (FLAGS, {"ATEN_CPU_CAPABILITY": "default"}, "avx512-vnni-bf16-aten-default"),
        (FLAGS, {"ATEN_CPU_CAPABILITY": "avx512"}, "avx512-vnni-bf16"),
    ],
)
def test_kinds_of_cpus(flags: list[str], variables: dict[str, str], name: str) -> None:
    assert cpu_kinds.kind(flags, variables) == name


def test_results_lie_with_those_of_the_same_kind_of_cpu() -> None:
    files = list((ROOT / "benchmarks" / "results").rglob("*.json"))
    assert len(files) > 20
    for file in files:
        machine = json.loads(file.read_text())["machine"]
        # "avx512f" is what the results name of avx512.
        flags = {"avx512bw" if flag == "avx512f" else flag for flag in machine["isa"]}
        assert file.parent.name == cpu_kinds.kind(flags, machine["variables"]), file


def test_spread_is_median_and_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([1.0, 2.0]) == Spread(1.5, 1.25, 1.75)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_ratio_compares_within_a_round() -> None:
    # The machine was ten times slower in the second round: both were, and the ratio stays.
    ours, theirs = [[1.0, 1.0, 9.0], [10.0]], [[2.0], [20.0]]
    assert ratio(ours, theirs) == Spread(0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="shorter"):
        ratio([[1.0], [1.0]], [[1.0]])


def test_goal_knows_its_side() -> None:
    assert Goal("a", 1.0, 1.0).met
    assert not Goal("a", 1.1, 1.0).met
    assert Goal("a", 36.0, 35.0, at_most=False).met
    assert not Goal("a", None, 35.0).met
    assert str(Goal("drop", 0.5, 0.3)) == "MISSED: drop: 0.500 (at most 0.3)"


def test_table_lines_up() -> None:
    rows = [{"name": "a", "ms": 1.5}, {"name": "bb", "error": "x"}]
    assert markdown(rows).splitlines() == [
        "| name |   ms | error |",
        "| ---- | ---: | ----- |",
        "| a    | 1.50 | -     |",
        "| bb   |    - | x     |",
    ]


def test_report_is_strict_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("r", "R", {"n": 1}, [{"dB": float("inf")}], [Goal("g", 2.0, 1.0)])
    report.finish(tmp_path)
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["rows"] == [{"dB": "inf"}]
    assert found["goals"][0]["met"] is False
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert "MISSED: g: 2.000" in capsys.readouterr().out


class Residual(nn.Module):
    """A shortcut, an activation without an int8 kernel, a shared scale and a float result."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).relu()
        y = torch.sigmoid(self.b(y) + y)
        return self.fc(torch.max_pool2d(y, 2).flatten(1))


def test_every_layer_agrees_alone() -> None:
    images = torch.rand(4, 3, 8, 8)
    q = octavo.quantize(
        Residual(), calibration=[images], target=octavo.host_target(), progress=False
    )
    found = list(layers.agreements(q.graph, images))
    assert [seen.ops for seen in found] == [
        *("quantize", "conv2d+relu", "conv2d+add+sigmoid+max_pool2d+flatten", "linear")
    ]
    for seen in found:
        assert seen.max_step <= 1
        assert seen.equal_percent > 99.0


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_explain_themselves(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert done.value.code == 0
    assert "--threads" in capsys.readouterr().out


def test_all_scripts_are_run_by_one_command() -> None:
    assert set(importlib.import_module("benchmarks.__main__").NAMES) == set(SCRIPTS)


def test_a_profile_adds_up_kinds_and_what_is_small() -> None:
    from benchmarks.profiles import beside

    ours = {"MatMul": [2.0, 3.0], "Add": [0.01], "Cast": [0.02]}
    rows = {row["kernel"]: row for row in beside({"a": ours, "b": {"Gemm": [4.0]}})}
    assert list(rows) == ["MatMul", "Gemm", "others", "all"]
    assert rows["MatMul"] == {
        "kernel": "MatMul",
        "a: ms": 5.0,
        "kernels of a": 2,
        "b: ms": 0,
        "kernels of b": 0,
    }
    assert rows["others"]["a: ms"] == pytest.approx(0.03)
    assert rows["all"]["kernels of a"] == 4
    assert rows["all"]["b: ms"] == 4.0


def a_contest(**times: float) -> Contest:
    """Each has one round of one call."""
    return Contest(times={name: Latency(((seconds,),)) for name, seconds in times.items()})


def test_advice_is_the_most_precise_that_nothing_beats_by_more_than_noise() -> None:
    assert advised({"fp32": 1.0, "bf16": 0.97, "int8": 0.98}) == "fp32"
    assert advised({"fp32": 1.0, "bf16": 0.5, "int8": 0.48}) == "bf16"
    assert advised({"fp32": 1.0, "bf16": 0.5, "int8": 0.4}) == "int8"
    assert advised({"fp32": 1.0, "bf16": None, "int8": 1.2}) == "fp32"


def test_standings_compare_the_best_of_ours_with_the_best_peer() -> None:
    found = a_contest(
        **{"torch fp32": 8.0, "torch.ao dynamic": 5.0, "OpenVINO, NNCF's int8": 4.0},
        **{"Octavo torch": 6.0, "Octavo torch, static": 2.0, "Octavo openvino": 3.0},
    )
    standings = speed_table.standings(found)
    assert (standings["best of ours"], standings["best peer"]) == (
        "Octavo torch, static",
        "OpenVINO, NNCF's int8",
    )
    assert standings[speed_table.OVER_BEST_PEER] == 0.5
    assert standings["over rivals"] == {"openvino": 0.75, "onnxruntime": None}
    assert standings["over torch.ao"] == pytest.approx(0.4)


def test_readme_gets_a_table_for_each_kind_of_cpu(tmp_path: Path) -> None:
    for kind, ours in (("amx", 1.0), ("avx2", 4.0)):
        (tmp_path / kind).mkdir()
        found = a_contest(**{"torch fp32": 2.0, "Octavo torch": ours})
        report = Report(
            "speed-gru", "GRU", {}, machine={"cpu": "C", "threads": 2, "date": "2026-01-02T"}
        )
        report.rows = [
            {"contender": name, "median ms": 1e3 * latency.median_s}
            for name, latency in found.times.items()
        ]
        report.details = speed_table.standings(found)
        (tmp_path / kind / "speed-gru.json").write_text(json.dumps(report.to_dict()))
    marks = f"{speed_table.BEGIN}\nold\n{speed_table.END}"
    text = speed_table.written(f"before\n{marks}\nafter\n", sorted(tmp_path.iterdir()))
    assert text.startswith(f"before\n{speed_table.BEGIN}\nKind `amx` (C, 2 threads, 2026-01-02)")
    assert text.endswith(f"{speed_table.END}\nafter\n")
    assert "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("| GRU")]
    assert [row.split("|")[-2].strip() for row in rows] == ["0.5", "2.00"]
    assert speed_table.written(text, sorted(tmp_path.iterdir())) == text
    with pytest.raises(ValueError, match="has no marks"):
        speed_table.written("nothing", [])
    assert speed_table.BEGIN in speed_table.README.read_text()


def test_what_this_commit_has_measured_is_not_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "speed-gru.json"
    assert not speed.is_measured(file, "abc")
    report = Report("speed-gru", "GRU", {}, rows=[{"contender": "a", "median ms": 1.0}])
    report.machine["commit"] = "abc"
    report.finish(tmp_path)
    assert speed.is_measured(file, "abc")
    assert not speed.is_measured(file, "abd")
    assert not speed.is_measured(file, "abc-changed")
    report.rows.append(
        {"contender": "b", "error": "TimeoutError: left out: the time for this model was over"}
    )
    report.finish(tmp_path)
    assert not speed.is_measured(file, "abc")


@pytest.mark.parametrize("times", [1, 2])
def test_a_model_that_was_disturbed_is_measured_once_more_behind_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, times: int
) -> None:
    monkeypatch.setattr(quiet, "cores_of_others", lambda: 0.0)
    monkeypatch.setattr(speed, "commit", lambda: "abc")
    measured: list[str] = []

    def run(words: list[str], **how: Any) -> Any:
        measured.append(words[words.index("--model") + 1])
        disturbed = measured[-1] == "gru" and measured.count("gru") <= times
        return subprocess.CompletedProcess(words, quiet.BUSY if disturbed else 0)

    monkeypatch.setattr(speed.subprocess, "run", run)
    with pytest.raises(SystemExit) as done:
        speed.main(["gru", "lstm", "--out", str(tmp_path)])
    assert measured == ["gru", "lstm", "gru"]
    assert done.value.code == (quiet.BUSY if times == 2 else 0)


def test_a_busy_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quiet, "cores_of_others", lambda: 1.25)
    monkeypatch.setattr(speed.subprocess, "run", None)  # measures nothing
    monkeypatch.setattr(speed, "commit", lambda: "abc")
    with pytest.raises(SystemExit) as done:
        speed.main(["gru", "--out", str(tmp_path)])
    assert done.value.code == quiet.BUSY == 75
    assert "other processes keep 1.25 cores busy" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_into_the_time_is_left_for_the_next_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quiet, "busy", lambda: "")
    monkeypatch.setattr(speed.subprocess, "run", None)  # measures nothing
    monkeypatch.setattr(speed, "commit", lambda: "abc")
    with pytest.raises(SystemExit) as done:
        speed.main(["gru", "lstm", "--minutes", "0.1", "--out", str(tmp_path)])
    assert done.value.code == 75
    assert "not yet measured are: gru, lstm. Run the same again" in capsys.readouterr().err


def test_ones_own_work_is_not_that_of_others() -> None:
    others = quiet.Others(_spent=quiet._busy_seconds() - quiet._own_seconds())
    sum(range(10**7))
    assert others.cores() < (len(os.sched_getaffinity(0)) + 0.5)
    assert quiet._own_seconds() > 0


def test_what_a_peer_built_is_kept(tmp_path: Path) -> None:
    def write(file: Path) -> None:
        written.append(file)
        file.write_text("model")
        file.with_suffix(".bin").write_text("weights")

    written: list[Path] = []
    kept = Kept(tmp_path / "net")
    for _ in range(2):
        file = kept.file("model.xml", write)
        assert file.read_text() == "model"
        assert file.with_suffix(".bin").read_text() == "weights"
    assert len(written) == 1
    assert Kept(None).file("model.xml", write).read_text() == "model"
    assert len(written) == 2

    def fails(file: Path) -> None:
        file.write_text("half")
        raise OSError

    with pytest.raises(OSError, match=r"^$"):
        kept.file("other.xml", fails)
    assert not (tmp_path / "net" / "other.xml").exists()
