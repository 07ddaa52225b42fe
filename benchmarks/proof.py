"""What it takes that lowering proves itself: its share of the time of `lower` and of `load`.

Each network is lowered with and without the comparison with the oracle, in turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import octavo
from benchmarks.report import Goal, Report, parsed, parser
from benchmarks.workloads import MODELS

RUNTIMES = ("torch", "onnxruntime", "openvino")
LIMIT = 0.5  # of the time of lowering, in the median over networks and runtimes


Timed = Callable[[bool], object]  # of whether to compare


def calls_of(q: octavo.QuantizedModel, file: Path) -> dict[str, Timed]:
    """What is timed."""
    calls: dict[str, Timed] = {
        f"lower {runtime}": partial(_lower, q, runtime) for runtime in RUNTIMES
    }
    return calls | {"load": lambda check: octavo.load(file, check=check)}


def _lower(q: octavo.QuantizedModel, runtime: str, check: bool) -> object:
    return q.lower(runtime, check=check)


def measured(call: Timed, rounds: int) -> dict[str, float]:
    """Median milliseconds with and without the comparison, and its share."""
    call(False)
    pairs = [(_seconds(call, True), _seconds(call, False)) for _ in range(rounds)]
    checked, alone = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    share = max(0.0, 1 - alone / checked)
    return {"ms": checked, "without the proof": alone, "its share": share}


def _seconds(call: Timed, check: bool) -> float:
    started = time.perf_counter()
    call(check)
    return time.perf_counter() - started


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    made.add_argument("--models", nargs="*", default=[n for n in MODELS if "batch" not in n])
    made.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    options = parsed(made, words)
    report = Report("proof", "Lowering and its proof", {"rounds": options.rounds})
    for name in options.models:
        model, work = MODELS[name], MODELS[name].make(8)
        q = octavo.quantize(
            work.net, work.args, calibration=work.calibration, mode=model.modes[0], progress=False
        )
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", octavo.OctavoWarning)
            file = Path(folder, "m.octavo")
            q.save(file)
            for what, call in calls_of(q, file).items():
                row = measured(call, options.rounds)
                made_by = call(True)
                assert isinstance(made_by, octavo.QuantizedModel)
                agreement = str(made_by.lowered.agreement)
                report.rows.append({"network": name, "what": what} | row | {"found": agreement})
    shares = [row["its share"] for row in report.rows]
    report.goals = [Goal("share of the time, median", statistics.median(shares), LIMIT)]
    report.finish(options.out)


if __name__ == "__main__":
    main()
