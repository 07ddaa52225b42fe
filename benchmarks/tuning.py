"""What tuning brings: a minute of ``q.tune`` against no tuning, and against all there is to try.

Of each model there are three: the fastest runtime without tuning, what a minute of tuning found,
and what tuning without a limit found, which tries every choice until nothing is left. They take
turns in one process, beside float torch; the ratio is the median over the rounds, with its
quartiles.
"""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import octavo
from benchmarks.contest import Call, Maker, add_rounds, contest
from benchmarks.report import Goal, Report, parsed, parser
from benchmarks.workloads import MODELS, Workload
from octavo.runtimes.tuning import Tuning

NAMES = ("mobilenet_v2", "resnet18", "minilm", "lstm")
FP32, UNTUNED, TUNED, FULL = "torch fp32", "untuned fastest", "tuned", "full search"
LIMITS = {UNTUNED: 1.0, FULL: 1.05, FP32: 1.0}  # of the tuned one's time over these
NOISE = 0.02  # of two that run the same
SAMPLES = 8  # to calibrate with


def quantized(work: Workload, mode: str) -> octavo.QuantizedModel:
    """The model as it is planned for this CPU."""
    static = mode == "static"
    return octavo.quantize(
        work.net,
        work.args,
        mode=mode,
        calibration=work.calibration if static else None,
        target=octavo.host_target(),
        progress=False,
    )


def column(tuning: Tuning) -> dict[str, Any]:
    """What a row says of a tuning."""
    return {
        "runs": str(tuning.best),
        "trials": len(tuning.trials),
        "seconds to tune": tuning.seconds,
        "over untuned, as it says": tuning.over_untuned,
    }


def measured(name: str, options: Namespace, report: Report) -> None:
    """A row for each contender, and a goal for each that the tuned one is compared with."""
    model = MODELS[name]
    work = model.make(SAMPLES)
    q = quantized(work, model.modes[0])
    other = copy.deepcopy(q)
    untuned = q.lower("fastest")
    columns = {
        UNTUNED: {"runs": untuned.lowered.runtime},
        TUNED: column(q.tune(budget=options.budget, progress=False)),
        FULL: column(other.tune(budget=options.full or None, progress=False)),
    }
    models = {UNTUNED: untuned, TUNED: q.lower("fastest"), FULL: other.lower("fastest")}

    def maker(run: Any) -> Maker:
        def make() -> Call:
            return lambda: run(*work.args)

        return make

    makers = {FP32: maker(work.net)} | {called: maker(run) for called, run in models.items()}
    found = contest(makers, options.rounds, options.seconds, options.slowest, rest_s=0.03)
    for called, row in found.rows.items():
        spread = found.ratio(TUNED, called)
        own = {"model": name, **row, **columns.get(called, {})}
        if spread is not None:
            own |= {f"{TUNED}'s time / this": spread.median, "quartiles": str(spread)}
        report.rows.append(own)
    for called, limit in LIMITS.items():
        value = found.median_ratio(TUNED, called)
        report.goals.append(Goal(f"{name}: tuned over {called}", value, limit + NOISE))


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    add_rounds(made, seconds=30, each="a model", slowest=4)
    made.add_argument("--models", nargs="*", default=list(NAMES), choices=MODELS)
    made.add_argument("--budget", type=float, default=60.0, help="seconds; default: %(default)s")
    made.add_argument(
        "--full", type=float, default=0.0, help="seconds of the full search; default: no limit"
    )
    options = parsed(made, words)
    report = Report(
        "tuning",
        "Tuned against untuned and against a full search, interleaved",
        {"budget": options.budget, "target": octavo.host_target()},
    )
    for name in options.models:
        measured(name, options, report)
    report.finish(options.out)


if __name__ == "__main__":
    main()
