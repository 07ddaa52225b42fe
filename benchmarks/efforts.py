"""What each method of accuracy brings, alone and together, on networks trained on hard digits.

A ResNet, MobileNetV2, MobileNetV3-small, a vision transformer, an LSTM and a GRU, in static int8
with the same 256 calibration images: one method at a time, the recipes of `effort=`, and
torch.ao FX, whose default is a histogram observer. The SQNR of the logits on the test images by
exact arithmetic, the drop of top-1, and the seconds of the whole call. The same layers are int8 in
all rows of Octavo's.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

import octavo
from benchmarks import accuracy, attention, hard_digits, nets
from benchmarks.peers import fx
from benchmarks.report import Goal, Report, parsed, parser, problem

FAST = "effort fast"
# What is told of a row -> settings of `octavo.quantize`
WAYS: Mapping[str, Mapping[str, Any]] = {
    FAST: {},
    "histogram alone": {"qconfig": octavo.static_qconfig(observer=octavo.Histogram())},
    "mse alone": {"qconfig": octavo.static_qconfig(observer=octavo.MSE())},
    "entropy alone": {"qconfig": octavo.static_qconfig(observer=octavo.Entropy())},
    "no bias correction": {"bias_correction": False},
    "gptq alone": {"weights": [octavo.GPTQ()]},
    "effort balanced": {"effort": "balanced"},
    "effort best": {"effort": "best"},
}
LARGEST_TIME = {"effort balanced": 2.0, "effort best": 30.0}  # times that of plain static
NETWORKS: Mapping[str, Callable[[hard_digits.HardDigits], nn.Module]] = {
    **{
        name: lambda data, name=name, make=make: hard_digits.trained(name, make, data)
        for name, make in nets.FOR_DIGITS.items()
    },
    attention.NETWORK: attention.network,
    "small LSTM": lambda data: hard_digits.trained("small LSTM", nets.SmallLSTM, data),
    "small GRU": lambda data: hard_digits.trained("small GRU", nets.SmallGRU, data),
}


def rows_of(name: str, net: nn.Module, data: hard_digits.HardDigits) -> list[dict[str, Any]]:
    """A row for each way, and one for the peer; what fails is a row with its error."""
    fp32 = accuracy.logits(net, data.test)

    def ours(settings: Mapping[str, Any]) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", octavo.OctavoWarning)
            return octavo.quantize(
                net, calibration=data.calibration, scope="model", progress=False, **settings
            )

    makers: dict[str, Callable[[], nn.Module]] = {
        way: lambda settings=settings: ours(settings) for way, settings in WAYS.items()
    }
    makers["torch.ao FX, onednn"] = lambda: fx(net, data.calibration, "onednn", reference=True)
    rows = []
    for way, make in makers.items():
        row: dict[str, Any] = {"network": name, "way": way}
        try:
            started = time.perf_counter()
            made = make()
            row["seconds"] = time.perf_counter() - started
            exact = made.lower("reference") if isinstance(made, octavo.QuantizedModel) else made
            row |= accuracy.judged(accuracy.logits(exact, data.test), fp32, data.test_labels)
            if isinstance(made, octavo.QuantizedModel) and "steps" in made.provenance:
                kept = [step["step"] for step in made.provenance["steps"] if step["kept"]]
                row["kept"] = ", ".join(kept)
        except Exception as error:  # noqa: BLE001  (whatever a peer raises is its result)
            row["error"] = problem(error)
        rows.append(row)
    return rows


def goals_of(name: str, rows: Sequence[Mapping[str, Any]]) -> list[Goal]:
    """At least 2 dB above the peer and no drop of 0.3 points; never below `fast`, nor too long."""
    by_way = {row["way"]: row for row in rows}
    plain, goals = by_way[FAST], []
    rival = by_way["torch.ao FX, onednn"].get("SQNR dB", float("-inf"))
    for way, times in LARGEST_TIME.items():
        row, label = by_way[way], f"{name}: {way}"
        goals += [
            Goal(f"{label}: SQNR", row.get("SQNR dB"), round(rival + 2.0, 2), False),
            Goal(f"{label}: SQNR of fast", row.get("SQNR dB"), plain.get("SQNR dB", 0.0), False),
            Goal(f"{label}: drop", row.get("drop"), accuracy.LARGEST_DROP),
            Goal(f"{label}: seconds", row.get("seconds"), times * plain.get("seconds", 0.0)),
        ]
    return goals


def main(words: Sequence[str] | None = None) -> None:
    """Train (or take from the cache), quantize, measure, report."""
    made = parser(__doc__)
    made.add_argument("--nets", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    options = parsed(made, words)
    data = hard_digits.load()
    report = Report(
        "efforts",
        "Methods of accuracy on hard digits",
        {
            "calibration images": sum(map(len, data.calibration)),
            "test images": len(data.test),
        },
    )
    for name in options.nets:
        rows = rows_of(name, NETWORKS[name](data), data)
        report.rows += rows
        report.goals += goals_of(name, rows)
    report.finish(options.out)


if __name__ == "__main__":
    main()
