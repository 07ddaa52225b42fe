"""What stays float, in float32 and in bfloat16: what bfloat16 costs in SQNR, and gains in time.

Each network is quantized as its target does by default and lowered to the runtimes that have
bfloat16, in both precisions. SQNR is against the float network. The default has to keep the model:
it may lose no more than a decibel to the oracle.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

import octavo
from benchmarks.contest import Maker, add_rounds, contest
from benchmarks.report import Goal, Report, parsed, parser
from benchmarks.workloads import MODELS, Workload
from octavo.runtimes import cpu

RUNTIMES = ("torch", "openvino")
PRECISIONS = ("float32", "bfloat16")
ORACLE = "oracle"
LIMIT_DB = 1.0


def contenders(work: Workload, mode: str) -> dict[str, Maker]:
    """name -> what makes the call; the first is the float network."""
    q = octavo.quantize(
        work.net, work.args, calibration=work.calibration, mode=mode, progress=False
    )

    def lowered(runtime: str, precision: str) -> Maker:
        def make():  # type: ignore[no-untyped-def]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", octavo.OctavoWarning)
                model = q.lower(runtime, precision=precision)
            return lambda: _tensor(model(*work.args))

        return make

    found: dict[str, Maker] = {"float": lambda: lambda: _tensor(work.net(*work.args))}
    found[ORACLE] = lowered("reference", "float32")
    for runtime in RUNTIMES:
        found |= {f"{runtime} {p}": lowered(runtime, p) for p in PRECISIONS}
    return found


def _tensor(result: object) -> torch.Tensor:
    leaves = torch.utils._pytree.tree_leaves(result)
    return next(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    made.add_argument("--models", nargs="*", default=["mobilenet_v2", "vit_b_16", "minilm", "lstm"])
    add_rounds(made, seconds=20, each="a network", slowest=4)
    made.add_argument("--samples", type=int, default=32, help="to calibrate with")
    options = parsed(made, words)
    settings = {"bf16 instructions": cpu.has_bf16(), "calibration": options.samples}
    report = Report("precision", "What stays float: float32 and bfloat16", settings)
    worst = 0.0
    for name in options.models:
        work = MODELS[name].make(options.samples)
        for mode in MODELS[name].modes:
            with torch.no_grad():
                found = contest(
                    contenders(work, mode), options.rounds, options.seconds, options.slowest, 0.03
                )
            for contender, row in found.rows.items():
                runtime, _, precision = contender.partition(" ")
                if precision == "bfloat16":
                    spread = found.ratio(contender, f"{runtime} float32")
                    row["time / float32"] = None if spread is None else spread.median
                report.rows.append({"network": name, "mode": mode} | row)
            oracle = found.rows[ORACLE]["SQNR dB"]
            defaults = [found.rows[f"{runtime} float32"].get("SQNR dB") for runtime in RUNTIMES]
            worst = max([worst, *(oracle - db for db in defaults if db is not None)])
    report.goals = [Goal("dB lost by the default to the oracle", worst, LIMIT_DB)]
    report.finish(options.out)


if __name__ == "__main__":
    main()
