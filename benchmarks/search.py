"""Whether a search finds what is asked for, keeps its time, and loses nothing when it is killed.

The network: a MobileNetV3-small trained on hard digits, in two of whose blocks one channel is 64
times as large as the trained one, and is scaled back by the weights that read it. In float it is
the same function. Such channels come with training without weight decay, and with large language
models; with them all others of the tensor share a few integers, so that plain static quantization
loses points. A user meets it as "int8 does not work for my network".

- found: the best of a search with a budget of 0.5 points, beside plain static quantization: drop,
  and the share of the multiplications and additions that run on int8 kernels.
- killed: SIGKILL at random moments, 10 times, and started again: finished trials that were
  measured again, or are gone, or whose model cannot be loaded.
- time: what searches with a training loop that would take far longer took of their time_budget.
- Ray: two workers with a thread each against one process with one: seconds, and the same trials.
"""

from __future__ import annotations

import importlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import octavo
from benchmarks import hard_digits, nets
from benchmarks.report import Goal, Report, parsed, parser
from octavo.searching import Trial

NET = "MobileNetV3-small x0.75"
BLOCKS, CHANNEL, FACTOR = (2, 3), 5, 64.0
IMAGES, MAX_DROP, LEAST_SHARE = 1000, 0.5, 80.0
KILLS, LATEST_S = 10, 15.0  # a kill comes at most so late after a search is under way
HALF, ALL_AND_TRAINING = 0.5, 1.3  # time budgets, in what the whole search took


def network(data: hard_digits.HardDigits) -> nn.Module:
    """Trained, with its outlier channels."""
    net = hard_digits.trained(NET, nets.FOR_DIGITS[NET], data)
    with torch.no_grad():
        for block in BLOCKS:
            norm = net.get_submodule(f"features.{block}.block.0.1")
            depthwise = net.get_submodule(f"features.{block}.block.1.0")
            assert isinstance(norm, nn.BatchNorm2d)
            assert isinstance(depthwise, nn.Conv2d)
            norm.weight[CHANNEL] *= FACTOR
            norm.bias[CHANNEL] *= FACTOR
            depthwise.weight[CHANNEL] /= FACTOR
    return net


def search(**changes: Any) -> octavo.SearchResult:
    """The search that all parts are about."""
    data = hard_digits.load()
    pairs = zip(data.test[:IMAGES].split(250), data.test_labels[:IMAGES].split(250), strict=True)
    settings: dict[str, Any] = {
        "calibration": data.calibration,
        "data": list(pairs),
        "max_drop": MAX_DROP,
        "target": octavo.host_target(),
        "progress": False,
    }
    return octavo.search(network(data), **(settings | changes))


def found(report: Report) -> octavo.SearchResult:
    """What it finds, trial by trial."""
    result = search()
    for trial in result.trials:
        report.rows.append(
            {
                "part": "found" if trial == result.best else "tried",
                "candidate": trial.name,
                "drop": trial.drop,
                "/ fp32 time": trial.over_fp32,
                "seconds": trial.seconds,
                "error": trial.error or None,
            }
        )
    slower = [time for time in result.layer_times or () if time.slower]
    report.details["layer times"] = result.to_dict()["layer_times"]
    report.notes += [
        result.verdict(),
        f"{len(slower)} of {len(result.layer_times or ())} layers are slower in int8 by themselves",
    ]
    share = None
    if result.model is not None:
        share = 100 * (result.model.summary().coverage.share or 0.0)
    report.goals += [
        Goal("plain static loses more than the budget", result.trials[0].drop, MAX_DROP, False),
        Goal("drop of the best", None if result.best is None else result.best.drop, MAX_DROP),
        Goal("percent of its multiply-adds in int8", share, LEAST_SHARE, False),
    ]
    return result


def killed(report: Report) -> None:
    """Ends it again and again, and looks after each end whether all is there."""
    chance = random.Random(0)
    kills = repeated = lost = broken = searches = 0
    with tempfile.TemporaryDirectory() as folder:
        while kills < KILLS:
            searches += 1
            checkpoint = Path(folder) / str(searches)
            known: dict[str, Any] = {}
            running = True
            while running:
                child = _child(checkpoint)
                try:
                    child.wait(chance.uniform(0, LATEST_S) if kills < KILLS else None)
                    running = False
                except subprocess.TimeoutExpired:
                    child.send_signal(signal.SIGKILL)
                    child.wait()
                    kills += 1
                after = _finished(checkpoint)
                lost += len(known.keys() - after.keys())
                repeated += sum(after[name] != known[name] for name in known.keys() & after.keys())
                broken += _broken(checkpoint)
                known = after
            assert child.returncode == 0
            assert any(trial["drop"] is not None for trial in known.values())
    report.rows.append({"part": "killed", "candidate": f"{kills} kills, {searches} searches"})
    report.goals += [
        Goal("times that a search was killed", kills, KILLS, False),
        Goal("finished trials measured again", repeated, 0),
        Goal("finished trials lost", lost, 0),
        Goal("best models that cannot be loaded", broken, 0),
    ]


def _child(checkpoint: Path) -> subprocess.Popen[bytes]:
    """A search in a process of its own; returns when it is under way."""
    threads = str(torch.get_num_threads())
    command = [sys.executable, "-m", "benchmarks.search", "--threads", threads]
    child = subprocess.Popen([*command, "--checkpoint", str(checkpoint)])
    while child.poll() is None and not (checkpoint / "under way").exists():
        time.sleep(0.05)
    (checkpoint / "under way").unlink(missing_ok=True)
    return child


def _finished(checkpoint: Path) -> dict[str, Any]:
    lines = checkpoint / "trials.jsonl"
    trials = map(json.loads, lines.read_text().splitlines() if lines.exists() else [])
    return {trial["name"]: trial for trial in trials}


def _broken(checkpoint: Path) -> int:
    """1 if a trial within the budget was finished and no whole model is there, else 0."""
    met = [t for t in _finished(checkpoint).values() if t["drop"] is not None]
    if not any(trial["drop"] <= MAX_DROP for trial in met):
        return 0
    try:
        octavo.load(checkpoint / "best.octavo")
    except octavo.OctavoError:
        return 1
    return 0


def budgets(report: Report, whole_s: float) -> None:
    """One that ends the search in its middle, one that ends a training loop."""

    def train(qat: octavo.QATModel) -> None:
        while True:
            qat(torch.randn(32, 1, 32, 32)).sum().backward()

    cases: list[tuple[str, float, dict[str, Any]]] = [
        ("plain", HALF, {}),
        ("with endless training", ALL_AND_TRAINING, {"train": train}),
    ]
    for what, share, changes in cases:
        budget = share * whole_s
        started = time.perf_counter()
        result = search(time_budget=budget, **changes)
        took = time.perf_counter() - started
        report.rows.append(
            {
                "part": "time",
                "candidate": f"{what}: {len(result.trials)} trials, budget {budget:.0f} s",
                "seconds": took,
            }
        )
        report.goals.append(
            Goal(f"seconds over a budget of {budget:.0f} s, {what}", took / budget, 1.1)
        )


def ray_beside_one_process(report: Report) -> None:
    """The same search, a thread for each worker, in a cluster that is there."""
    import ray

    with _threads(1):
        started = time.perf_counter()
        here = search()
        alone_s = time.perf_counter() - started
        started = time.perf_counter()
        ray.init(
            "local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"worker_process_setup_hook": _with_networks},
        )
        start_s = time.perf_counter() - started
        started = time.perf_counter()
        there = search(engine="ray")
        ray_s = time.perf_counter() - started
        ray.shutdown()
    same = sum(_same(a, b) for a, b in zip(here.trials, there.trials, strict=False))
    rows = {"one process": alone_s, "Ray, two workers": ray_s, "start of the cluster": start_s}
    report.rows += [{"part": "Ray", "candidate": n, "seconds": s} for n, s in rows.items()]
    report.goals.append(
        Goal("trials on Ray that differ", max(len(here.trials), len(there.trials)) - same, 0)
    )


def _with_networks() -> None:
    """In a worker: torchvision loads beside the CPU build of torch."""
    importlib.import_module("benchmarks.nets")


def _same(one: Trial, other: Trial) -> bool:
    """In all but what the clock says, which layers int8 makes slower included."""
    if one.name == other.name and "slower layers" in one.name:
        return True
    return all(
        getattr(one, name) == getattr(other, name)
        for name in ("name", "in_float", "metric", "drop", "size_bytes", "int8", "layers", "error")
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(words: Sequence[str] | None = None) -> None:
    """Search, kill, and report; or, with a checkpoint, search alone."""
    made = parser(__doc__)
    made.add_argument("--checkpoint", type=Path, help="search, with this folder, and nothing else")
    options = parsed(made, words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        if options.checkpoint is not None:
            options.checkpoint.mkdir(parents=True, exist_ok=True)
            (options.checkpoint / "under way").touch()
            search(checkpoint=options.checkpoint)
            return
        report = Report(
            "search",
            "Search within an accuracy budget",
            {"network": NET, "outlier factor": FACTOR, "images": IMAGES, "max_drop": MAX_DROP},
        )
        result = found(report)
        for part in (killed, lambda r: budgets(r, result.seconds), ray_beside_one_process):
            report.finish(options.out)  # of what is known by now
            part(report)
    report.finish(options.out)


if __name__ == "__main__":
    main()
