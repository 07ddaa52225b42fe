"""What `speed` has found of all models: one table, its goals, and README's tables of it.

The latter stand between two marks in README.md, one for each kind of CPU that was measured.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import octavo
from benchmarks.contenders import BF16, FP32, NNCF_INT8, ORT_INT8, OURS, TORCH_AO
from benchmarks.contest import Contest
from benchmarks.report import Goal, Report, markdown
from benchmarks.workloads import MODELS

# Octavo's runtime -> the peer on the same runtime, and what the geometric mean of its time over
# the peer's may be at most; for each model that is 1.
RIVALS = {"openvino": (NNCF_INT8, 0.9), "onnxruntime": (ORT_INT8, 0.7)}
LIMIT, MEAN_LIMIT = 1.0, 0.9
RECURRENT_LIMIT = 0.5  # the torch runtime's time over torch.ao dynamic's
RECURRENT = ("lstm", "gru")
OVER_BEST_PEER = "best of ours / best peer"
# Column -> the contenders whose best it shows, by the beginnings of their names.
COLUMNS = {
    FP32: (FP32,),
    "bf16: torch": BF16[:1],
    "compiled": BF16[1:2],
    "OpenVINO": BF16[2:],
    "torch.ao": TORCH_AO,
    "ONNX Runtime's int8": (ORT_INT8,),
    "NNCF + OpenVINO": (NNCF_INT8,),
    **{f"Octavo {runtime}": (f"Octavo {runtime}",) for runtime in OURS},
}
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- written by benchmarks.speed --readme: begin -->", "<!-- end -->"


def is_ours(contender: str) -> bool:
    return contender.startswith("Octavo")


def standings(found: Contest) -> dict[str, Any]:
    """Who is the fastest of ours and of the peers, and what ours takes beside others."""
    times = {name: latency.median_s for name, latency in found.times.items()}
    best = min(filter(is_ours, times), key=times.__getitem__, default=None)
    peer = min((name for name in times if not is_ours(name)), key=times.__getitem__, default=None)
    return {
        "best of ours": best,
        "best peer": peer,
        OVER_BEST_PEER: found.median_ratio(best or "", peer or ""),
        "over rivals": {
            runtime: best_ratio(found, f"Octavo {runtime}", rival)
            for runtime, (rival, _) in RIVALS.items()
        },
        "over torch.ao": best_ratio(found, "Octavo torch", *TORCH_AO),
    }


def best_ratio(found: Contest, ours: str, *theirs: str) -> float | None:
    """The time of the best mode on a runtime over another's."""
    modes = [name for name in found.times if name == ours or name.startswith(f"{ours},")]
    ratios = [found.median_ratio(mode, rival) for mode in modes for rival in theirs]
    return min((ratio for ratio in ratios if ratio is not None), default=None)


def goals(name: str, details: Mapping[str, Any], found: Contest) -> list[Goal]:
    """What is asked of Octavo on one model."""
    made = [Goal(f"{name}: {OVER_BEST_PEER}", details[OVER_BEST_PEER], LIMIT)]
    made += [
        Goal(f"{name}: Octavo {runtime}: time over {RIVALS[runtime][0]}", value, LIMIT)
        for runtime, value in details["over rivals"].items()
    ]
    if name in RECURRENT:
        value = details["over torch.ao"]
        made.append(Goal(f"{name}: Octavo torch: time over torch.ao", value, RECURRENT_LIMIT))
    speedup = MODELS[name].speedup
    if speedup is not None:
        value = found.median_ratio(details["best of ours"] or "", FP32)
        made.append(Goal(f"{name}: best of ours: time over fp32", value, round(1 / speedup, 4)))
    return made


def row_of(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Milliseconds by column."""
    times = {row["contender"]: row["median ms"] for row in result["rows"] if "median ms" in row}
    row: dict[str, Any] = {"model": MODELS[name].title}
    for column, names in COLUMNS.items():
        own = [ms for who, ms in times.items() if who.split(",")[0] in names or who in names]
        row[column] = min(own, default=None)
    return row | {OVER_BEST_PEER: result["details"][OVER_BEST_PEER]}


def table_of(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a model, and one of geometric means."""
    rows = [row_of(name, result) for name, result in results.items()]
    return [*rows, {"model": "geometric mean", OVER_BEST_PEER: mean_of(results, OVER_BEST_PEER)}]


def mean_of(results: Mapping[str, Mapping[str, Any]], *keys: str) -> float | None:
    """The geometric mean of a number in all results; of those models where there is one."""
    values = []
    for result in results.values():
        value: Any = result["details"]
        for key in keys:
            value = value[key]
        values += [] if value is None else [value]
    return statistics.geometric_mean(values) if values else None


def results_in(folder: Path) -> dict[str, dict[str, Any]]:
    """Of each model that was measured, in the order of `MODELS`."""
    files = {name: folder / f"speed-{name}.json" for name in MODELS}
    return {name: json.loads(f.read_text()) for name, f in files.items() if f.exists()}


def summarize(folder: Path) -> None:
    """The table of all models in a folder, on the screen and in ``speed.json``."""
    results = results_in(folder)
    report = Report(
        "speed",
        "Milliseconds of a call, by model",
        {"target": octavo.host_target()},
        rows=table_of(results),
        notes=["where Octavo has several modes for a model, the faster one is shown"],
    )
    mean = mean_of(results, OVER_BEST_PEER)
    report.goals.append(Goal(f"{OVER_BEST_PEER}, mean", mean, MEAN_LIMIT))
    for runtime, (rival, limit) in RIVALS.items():
        mean = mean_of(results, "over rivals", runtime)
        report.goals.append(Goal(f"Octavo {runtime}: time over {rival}, mean", mean, limit))
    report.goals += [
        Goal(goal["name"], goal["value"], goal["limit"], goal["at_most"])
        for result in results.values()
        for goal in result["goals"]
    ]
    report.notes += [
        f"{name}: {row['contender']} was left out: {row['error']}"
        for name, result in results.items()
        for row in result["rows"]
        if "error" in row
    ]
    report.details = {"commits": {n: r["machine"].get("commit") for n, r in results.items()}}
    report.finish(folder)


def for_readme(folder: Path) -> str:
    """A kind of CPU's table, with a line that says what it was measured on."""
    results = results_in(folder)
    machine = next(iter(results.values()))["machine"]
    dates = sorted(result["machine"]["date"][:10] for result in results.values())
    words = (
        f"Kind `{folder.name}` ({machine['cpu']}, {machine['threads']} threads, {dates[-1]}): "
        "milliseconds of a call, the lower the better"
    )
    return f"{words}:\n\n{markdown(table_of(results))}\n"


def written(readme: str, folders: Sequence[Path]) -> str:
    """README with new tables between its marks.

    Raises:
        ValueError: it has no marks.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README has no marks {BEGIN} and {END}")
    tables = "\n".join(for_readme(folder) for folder in folders if results_in(folder))
    return f"{before}{begin}\n{tables}{end}{after}"


def write_readme(results: Path) -> Path:
    """Write the tables of all kinds of CPUs that have a folder of results; returns its path."""
    README.write_text(written(README.read_text(), sorted(results.iterdir())))
    return README
