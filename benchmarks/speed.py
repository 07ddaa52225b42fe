"""How fast: Octavo's runtimes against what else runs a PyTorch model, in int8, bf16 and float.

Every model has a process of its own, in which all contenders take turns; time is compared within a
round, and a ratio is the median over the rounds. ONNX Runtime, OpenVINO and torch have threads of
their own, which spin after a call, so that each turn begins with a rest. The SQNR against fp32
stands beside the time. The weights are random, but for those of minilm.

Nothing is recorded while other processes are busy: the exit status is 75 then. What was measured of
this commit is not measured again, so that the same command goes on where it was stopped. What peers
take long to build is kept in benchmarks/.cache for the next run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import quiet, speed_table
from benchmarks.contenders import (
    FP32,
    NNCF_INT8,
    OURS,
    Deadline,
    contenders,
    more_contenders,
    target_of,
)
from benchmarks.contest import Contest, contest
from benchmarks.kept import Kept
from benchmarks.report import Goal, Report, parsed, parser
from benchmarks.workloads import MODELS, Workload

PACKAGES = "onnx onnxruntime openvino nncf torchao transformers".split()
SAMPLES = 8  # to calibrate with
MANY_SAMPLES = 300  # from which on the time that this takes is the goal, at most half of NNCF's
CONVERSION_LIMIT = 0.5
MINUTES = 38.0  # for all models together
LEAST_ROUNDS_S, MOST_ROUNDS_S = 10.0, 30.0
REST_S = 0.1
TUNE_S = 20.0
# Where a model's process leaves off building: the slowest machine still measures those before.
SHARE_FOR_BUILDING = 2.0
LEAST_SHARE_S = 20.0
_OVER = "the time is over, and not yet measured are: {}. Run the same again: it goes on there"
PASSED_ON = "threads out rounds slowest samples tune".split()


def measure(name: str, options: Namespace) -> int:
    """One model, in this process; the exit status."""
    began = time.perf_counter()
    model = MODELS[name]
    work = model.make(options.samples)
    columns: dict[str, dict[str, Any]] = {}
    many = options.samples >= MANY_SAMPLES
    kept = Kept(None) if many else Kept.of(work.net, work.shown())
    makers = contenders(work, model, kept, 0.0 if many else options.tune, columns)
    if many:  # only the time that these take to build counts
        makers = {who: makers[who] for who in (FP32, "Octavo openvino", NNCF_INT8)}
    elif options.more:
        makers |= more_contenders(work, model, kept, columns)
    for who in makers:
        columns.setdefault(who, {})
    deadline = Deadline(began + SHARE_FOR_BUILDING * options.seconds)
    rounds_s = max(LEAST_ROUNDS_S, min(MOST_ROUNDS_S, options.seconds / 4))
    found = contest(
        deadline.timed(makers, columns), options.rounds, rounds_s, options.slowest, REST_S
    )
    if not (options.busy or quiet.is_quiet(found.others_cores)):
        print(f"{name}: {quiet.refusal(found.others_cores)}", file=sys.stderr)
        return quiet.BUSY
    report = reported(name, options, work, found, columns)
    report.details |= {
        "cores of others": found.others_cores,
        "seconds in all": time.perf_counter() - began,
    }
    if options.busy:
        print(report, flush=True)
    else:
        report.finish(options.out)
    return 0


def reported(
    name: str,
    options: Namespace,
    work: Workload,
    found: Contest,
    columns: dict[str, dict[str, Any]],
) -> Report:
    """What was found of one model."""
    report = Report(
        file_of(name, options.samples),
        f"{MODELS[name].title}: Octavo's runtimes and their peers",
        {
            "shapes": [list(t.shape) for t in work.args],
            "calibration batches": len(work.calibration),
            "targets": {runtime: target_of(runtime) for runtime in OURS},
        },
    )
    report.machine |= {"commit": commit()}
    report.machine["versions"] |= {package: version(package) for package in PACKAGES}
    details: dict[str, dict[str, str]] = {}
    for contender, row in found.rows.items():
        spread = found.ratio(contender, FP32)
        if spread is not None:
            row |= {"time / fp32": spread.median, "quartiles": str(spread)}
        noted = columns[contender]
        if "not in int8" in noted:
            details[contender] = noted.pop("not in int8")
        report.rows.append(row | noted)
    report.details = {"not in int8": details} | speed_table.standings(found)
    if options.samples >= MANY_SAMPLES:
        report.goals = [conversion_goal(name, report)]
    else:
        report.goals = speed_table.goals(name, report.details, found)
    return report


def conversion_goal(name: str, report: Report) -> Goal:
    seconds = {row["contender"]: row.get("seconds to load") for row in report.rows}
    mine, theirs = seconds["Octavo openvino"], seconds[NNCF_INT8]
    value = mine / theirs if mine and theirs else None
    return Goal(f"{name}: seconds to load, over NNCF's", value, CONVERSION_LIMIT)


def file_of(name: str, samples: int = SAMPLES) -> str:
    """Of the JSON file, without its end."""
    return f"speed-{name}" + ("" if samples == SAMPLES else f"-{samples}-samples")


def commit() -> str:
    """The last one that changed what is measured; ``"-changed"`` behind it where it is not all."""
    root = Path(__file__).parents[1]
    parts = ["src", "native", "benchmarks/*.py", "constraints.txt"]

    def git(*words: str) -> str:
        words = ("git", *words, "--", *parts)
        return subprocess.run(words, capture_output=True, text=True, cwd=root).stdout.strip()

    changed = git("status", "--porcelain")
    return git("log", "-1", "--format=%h", "--abbrev=12") + ("-changed" if changed else "")


def is_measured(file: Path, now: str) -> bool:
    """Whether a file has what this commit takes, of every contender, on this kind of CPU."""
    if not file.exists() or now.endswith("-changed") or not now:
        return False
    found = json.loads(file.read_text())
    left_out = any("left out: the time" in row.get("error", "") for row in found["rows"])
    return bool(found["machine"].get("commit") == now) and not left_out


def measure_all(names: Sequence[str], options: Namespace) -> int:
    """Each in a process of its own, as long as the machine is quiet; the exit status."""
    ends = time.perf_counter() + 60 * options.minutes
    now, failed = commit(), []
    files = {name: options.out / f"{file_of(name, options.samples)}.json" for name in names}
    left = [name for name, file in files.items() if not is_measured(file, now)]
    if len(left) < len(names):
        print(f"measured already at {now}: {', '.join(n for n in names if n not in left)}")
    disturbed: set[str] = set()
    stopped = False
    while left and not stopped:
        seconds = (ends - time.perf_counter()) / len(left)
        over = "" if seconds >= LEAST_SHARE_S else _OVER.format(", ".join(left))
        problem = over or ("" if options.busy else quiet.busy())
        if problem:
            print(problem, file=sys.stderr)
            stopped = True
            continue
        name = left.pop(0)
        status = subprocess.run(command(name, seconds, options), env=environment_of()).returncode
        if status == quiet.BUSY and name not in disturbed:  # once more, behind the others
            disturbed.add(name)
            left.append(name)
        elif status == quiet.BUSY:
            stopped = True
        elif status:
            failed.append(name)
    if not options.busy and options.samples == SAMPLES and any(map(Path.exists, files.values())):
        speed_table.summarize(options.out)
    if failed:
        print(f"could not be measured: {', '.join(failed)}", file=sys.stderr)
    return quiet.BUSY if stopped else bool(failed)


def command(name: str, seconds: float, options: Namespace) -> list[str]:
    given = [f"--{n}={getattr(options, n)}" for n in PASSED_ON if getattr(options, n) is not None]
    switches = [f"--{n}" for n in ("busy", "more") if getattr(options, n)]
    words = ["--model", name, f"--seconds={seconds:.0f}", *given, *switches]
    return [sys.executable, "-m", "benchmarks.speed", *words]


def environment_of() -> dict[str, str]:
    """What Inductor compiles is kept between runs."""
    folder = Path(__file__).parent / ".cache" / "inductor"
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder)} | os.environ


def options_of_speed() -> ArgumentParser:
    made = parser(__doc__)
    made.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}")
    made.add_argument("--model", choices=MODELS, help="this one, in this process, and no summary")
    made.add_argument(
        "--minutes", type=float, default=MINUTES, help="for all models; default: %(default)s"
    )
    made.add_argument("--seconds", type=float, default=120.0, help="for a --model, all in all")
    made.add_argument("--rounds", type=int, help="what fits into the time without it")
    made.add_argument(
        "--slowest", type=float, default=2.0, help="seconds of a call that takes part"
    )
    made.add_argument(
        "--samples", type=int, default=SAMPLES, help="to calibrate with; default: %(default)s"
    )
    made.add_argument(
        "--tune",
        type=float,
        default=TUNE_S,
        help="seconds, of our fastest, and a share for each foreign runtime; default: %(default)s",
    )
    made.add_argument("--more", action="store_true", help="other floats, Inductor and PT2E too")
    made.add_argument("--busy", action="store_true", help="measure all the same, record nothing")
    made.add_argument(
        "--readme", action="store_true", help="measure nothing: write README's tables of results"
    )
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = options_of_speed()
    options = parsed(made, words)
    unknown = [name for name in options.models if name not in MODELS]
    if unknown:
        made.error(f"unknown models: {', '.join(unknown)}; of {', '.join(MODELS)}")
    if options.readme:
        print(f"written to {speed_table.write_readme(options.out.parent)}")
        return
    if options.model is not None:
        sys.exit(measure(options.model, options))
    sys.exit(measure_all(options.models or list(MODELS), options))


if __name__ == "__main__":
    main()
