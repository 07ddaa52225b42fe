"""What each method of accuracy brings, alone and together, on networks trained on real digits.

A ResNet, MobileNetV2, MobileNetV3-small, a vision transformer, an LSTM and a GRU that classify hard
digits, a U-Net that classifies the pixels of scenes, and a network that finds a digit's corners, in
static int8 with 256 calibration images: the recipes of `effort=`, one method at a time, and the
peers at each of their settings: torch.ao FX, torchao's PT2E, ONNX Runtime with each of its
calibrations, NNCF with and without its full bias correction. On the test images by exact
arithmetic: the SQNR of the outputs, the task's metric, what it has lost and the half of the 95 %
interval of that, and the seconds of the whole call. The same layers are int8 in all rows of
Octavo's, but for additions and layers at the ends that "balanced" and "best" leave in float, at
most half a percent of the multiply-adds ("kept" says so), and for the rows that leave in float what
peers do: recurrence, attention. "cpu seconds" are those of the process, which others that are busy
change less.

Recipes and peers see several draws of calibration images, methods alone the first; the trained
weights and the test images are always the same.

    python -m benchmarks.efforts --resume peers --docs docs/guide.md
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks import accuracy, efforts_table, hard_digits
from benchmarks.efforts_ways import FLOAT, ours, ways_of
from benchmarks.hard_digits import CALIBRATION_IMAGES, HardDigits
from benchmarks.report import Report, parsed, parser, write_table
from benchmarks.static_peers import PEERS
from benchmarks.tasks import TASKS, Metric
from octavo.measuring.metrics import Likeness

WHOSE = ("peers", "ours")
Key = tuple[str, str, int]


def key_of(row: Mapping[str, Any]) -> Key:
    """Which network it is of, which way and which draw."""
    return row["network"], row["way"], row["draw"]


def judged(found: Tensor, fp32: Tensor, truth: Tensor, metric: Metric) -> dict[str, Any]:
    """The columns of one row."""
    likeness = Likeness()
    likeness.update(fp32, found)
    drop, chance = metric.drop(found, fp32, truth)
    return {
        "metric": metric.name,
        "value": float(metric.value(metric.parts(found, truth).sum(0))),
        "drop": drop,
        "+-": chance,
        "SQNR dB": likeness.sqnr_db,
    }


def rows_of(
    name: str,
    digits: HardDigits,
    draws: int,
    whose: Collection[str],
    there: Collection[Key],
) -> Iterator[dict[str, Any]]:
    """A row for float, each way and each peer, and each draw, but for those that are there."""
    task = TASKS[name]
    net, (images, truth) = task.net(digits), task.problem.test(digits)
    fp32 = accuracy.logits(net, images)
    judge = partial(judged, fp32=fp32, truth=truth, metric=task.problem.metric)
    labels = {"network": name, "way": FLOAT, "draw": 0}
    if key_of(labels) not in there:
        yield labels | judge(fp32)
    if "ours" in whose:
        ours(net, task.problem.calibration(digits, 0), {}, [])  # a process's first call is slower
    for draw in range(draws):
        calibration = task.problem.calibration(digits, draw)
        kept: dict[str, list[str]] = {}
        makers: dict[str, accuracy.Maker] = {}
        if "peers" in whose:
            for way, peer in PEERS.items():
                makers[way] = partial(peer, net, calibration, task.is_transformer)
        if "ours" in whose:
            for way, settings in ways_of(task, draw).items():
                makers[way] = partial(ours, net, calibration, settings, kept.setdefault(way, []))
        for way, make in makers.items():
            labels = {"network": name, "way": way, "draw": draw}
            if key_of(labels) not in there:
                row = accuracy.row_of(labels, make, images, judge)
                yield row | {"kept": ", ".join(kept.get(way, ()))}


def main(words: Sequence[str] | None = None) -> None:
    """Train (or take from the cache), quantize, measure, report."""
    made = parser(__doc__)
    made.add_argument("--nets", nargs="*", default=list(TASKS), choices=TASKS)
    made.add_argument("--draws", type=int, default=3, help="of calibration images")
    made.add_argument("--whose", nargs="*", default=WHOSE, choices=WHOSE, help="rows are measured")
    made.add_argument(
        "--resume",
        choices=("all", "peers"),
        help="keep an earlier run's rows: all, or peers', which no change of Octavo touches",
    )
    made.add_argument("--docs", type=Path, help="file whose tables are written anew")
    options = parsed(made, words)
    digits = hard_digits.load()
    report = Report(
        "efforts",
        "Methods of accuracy on networks trained on digits",
        {"calibration images": CALIBRATION_IMAGES},
    )
    if options.resume:
        report.resume(options.out)
    if options.resume == "peers":
        report.rows = [row for row in report.rows if row["way"] in (FLOAT, *PEERS)]
    there = {key_of(row) for row in report.rows}
    for name in options.nets:
        for row in rows_of(name, digits, options.draws, options.whose, there):
            report.rows.append(row)
            report.write(options.out)
    order = list(TASKS)
    report.rows.sort(key=lambda row: (order.index(row["network"]), row["draw"]))
    report.goals = efforts_table.goals_of(report.rows)
    if options.docs:
        for table in efforts_table.tables_of(report.rows):
            write_table(table, options.docs)
    report.finish(options.out)


if __name__ == "__main__":
    main()
