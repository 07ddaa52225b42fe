"""What static int8 costs in accuracy, against torch.ao FX, on networks trained on hard digits.

The same 256 calibration images for all. Top-1 and its change in points, agreement with fp32, and
the SQNR of the logits, on the same test images. `reference` rows are exact arithmetic, so that they
hold for every CPU; the other rows are the int8 kernels of the CPU at hand. What suits CPUs without
VNNI ("AVX2": Octavo's target x86-avx2, FX's mapping x86) has to give up a bit of some tensors, and
is compared with its like. "+-" is the standard error of the drop: chance, with so many images.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from benchmarks import hard_digits, nets
from benchmarks.peers import FX_CPUS, fx
from benchmarks.report import Goal, Report, parsed, parser, problem
from octavo.measuring.metrics import Likeness

LARGEST_DROP = 0.3  # points
BATCH = 250  # images at a time
CPUS = {"x86": "VNNI", "x86-avx2": "AVX2"}  # target -> the CPUs that it suits
Maker = Callable[[], Callable[[Tensor], Tensor]]


def contenders(net: nn.Module, calibration: list[Tensor]) -> dict[tuple[str, str, str], Maker]:
    """(who, how it runs, for which CPUs) -> what makes its model."""

    def ours(target: str, runtime: str) -> Maker:
        def make() -> nn.Module:
            with warnings.catch_warnings():  # that another target's layers have no kernel here
                warnings.simplefilter("ignore", octavo.OctavoWarning)
                q = octavo.quantize(net, calibration=calibration, target=target, progress=False)
            return q.lower(runtime)

        return make

    def theirs(engine: str, reference: bool) -> Maker:
        return lambda: fx(net, calibration, engine, reference=reference)

    host = octavo.host_target()
    makers: dict[tuple[str, str, str], Maker] = {
        (f"Octavo {host}", "int8 kernels", CPUS[host]): ours(host, "torch")
    }
    for target, cpus in CPUS.items():
        makers[f"Octavo {target}", "reference", cpus] = ours(target, "reference")
    for engine, cpus in FX_CPUS.items():
        makers[f"FX {engine}", "int8 kernels", cpus] = theirs(engine, False)
        makers[f"FX {engine}", "reference", cpus] = theirs(engine, True)
    return makers


def logits(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in images.split(BATCH)])


def judged(found: Tensor, fp32: Tensor, labels: Tensor) -> dict[str, float | None]:
    """The columns of one row."""
    likeness = Likeness()
    likeness.update(fp32, found)
    right, fp32_right = (scores.argmax(1) == labels for scores in (found, fp32))
    lost, won = int((fp32_right & ~right).sum()), int((right & ~fp32_right).sum())
    return {
        "top-1 %": 100 * int(right.sum()) / len(labels),
        "drop": 100 * (lost - won) / len(labels),
        "+-": 100 * math.sqrt(lost + won) / len(labels),
        "SQNR dB": likeness.sqnr_db,
        "agreement %": likeness.agreement,
    }


def row_of(
    labels: Mapping[str, Any],
    make: Maker,
    images: Tensor,
    judge: Callable[[Tensor], Mapping[str, Any]],
) -> dict[str, Any]:
    """What is judged of a contender's answers to the images, behind what it is called.

    ``seconds`` are those of making it, and those of the process meanwhile; whatever a peer raises
    is its result, ``error``.
    """
    row = dict(labels)
    try:
        started, worked = time.perf_counter(), time.process_time()
        model = make()
        row["seconds"] = time.perf_counter() - started
        row["cpu seconds"] = time.process_time() - worked
        row |= judge(logits(model, images))
    except Exception as error:  # noqa: BLE001
        row["error"] = problem(error)
    return row


def rows_of(
    name: str,
    net: nn.Module,
    data: hard_digits.HardDigits,
    makers: Mapping[tuple[str, str, str], Maker],
) -> list[dict[str, Any]]:
    """fp32, then every contender; one that fails is a row with its error."""
    fp32 = logits(net, data.test)

    def judge(found: Tensor) -> dict[str, float | None]:
        return judged(found, fp32, data.test_labels)

    float_row = {"network": name, "contender": "fp32", "runs": "float", "for": "-"}
    rows: list[dict[str, Any]] = [float_row | judge(fp32)]
    for (who, how, cpus), make in makers.items():
        labels = {"network": name, "contender": who, "runs": how, "for": cpus}
        rows.append(row_of(labels, make, data.test, judge))
    return rows


def goals_of(name: str, rows: Sequence[Mapping[str, Any]]) -> list[Goal]:
    """Drop at most 0.3 points; SQNR no worse than FX's on the same CPUs, by the same means."""
    ours = [row for row in rows if row["contender"].startswith("Octavo")]
    goals = []
    for row in ours:
        label = f"{name}: {row['contender']}, {row['runs']}"
        goals.append(Goal(f"{label}: drop", row.get("drop"), LARGEST_DROP))
        rivals = [
            other.get("SQNR dB", float("-inf"))
            for other in rows
            if other["contender"].startswith("FX") and _comparable(row, other)
        ]
        goals.append(Goal(f"{label}: SQNR", row.get("SQNR dB"), round(max(rivals), 2), False))
    return goals


def _comparable(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """On kernels the best that FX does on this CPU; in exact arithmetic what is for the same."""
    same_cpus = ours["runs"] == "int8 kernels" or ours["for"] == theirs["for"]
    return bool(ours["runs"] == theirs["runs"] and same_cpus)


def main(words: Sequence[str] | None = None) -> None:
    """Train (or take from the cache), quantize, measure, report."""
    made = parser(__doc__)
    made.add_argument("--nets", nargs="*", default=list(nets.FOR_DIGITS), choices=nets.FOR_DIGITS)
    options = parsed(made, words)
    data = hard_digits.load()
    report = Report(
        "accuracy",
        "Static accuracy on hard digits",
        {
            "calibration images": sum(map(len, data.calibration)),
            "test images": len(data.test),
        },
    )
    for name in options.nets:
        net = hard_digits.trained(name, nets.FOR_DIGITS[name], data)
        rows = rows_of(name, net, data, contenders(net, data.calibration))
        report.rows += rows
        report.goals += goals_of(name, rows)
    report.finish(options.out)


if __name__ == "__main__":
    main()
