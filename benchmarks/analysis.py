"""What the analysis costs, and whether it is right.

- `layer_errors` over a pass of the float model; the sensitivity estimate of all layers over one
  calibration pass, beside one pass of the quantized model for each layer, which is the naive way;
  ResNet-50 at 224x224 with batches of 8.
- The rank correlation (Spearman) of the estimate with what was measured one layer at a time, on
  three networks trained on hard digits.
- Planted culprits: one layer's weights with an outlier, one activation with heavy tails. In how
  many of 20 random networks it ranks first, by the estimate, as measured, by `layer_errors`, and
  among the report's repairs.
"""

from __future__ import annotations

import time
import timeit
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import octavo
from benchmarks import hard_digits, nets
from benchmarks.report import Goal, Report, parsed, parser
from octavo.measuring.layers.repair import repairs

from culprits import planted  # isort: skip  (nets lets the tests be imported)

BATCHES, BATCH = 16, 8
TRIALS = 20
ERRORS_LIMIT, ESTIMATE_LIMIT = 3.0, 5.0


def seconds(call: Callable[[], object], rounds: int = 1) -> float:
    """The fastest of some calls; the first warms up."""
    call()
    return min(timeit.repeat(call, repeat=rounds, number=1))


def costs(report: Report) -> list[Goal]:
    """Seconds of each analysis over the same batches, and what they are of a plain pass."""
    net = nets.net_for_images("resnet50")
    data = [nets.photos(BATCH, seed=seed) for seed in range(BATCHES)]
    target = octavo.host_target()
    q = octavo.quantize(net, calibration=data[:1], target=target, progress=False)
    graph = octavo.capture(net, data[0])
    plan = octavo.plan(graph, target=target)

    def forward(model: Callable[[Tensor], Any]) -> None:
        with torch.no_grad():
            for batch in data:
                model(batch)

    layers = len([t for t in plan.tensors.values() if t.kind == "weight"])
    found = {
        "float pass": seconds(lambda: forward(net)),
        "int8 pass": seconds(lambda: forward(q)),
        "calibration pass": seconds(lambda: octavo.calibrate(graph, plan, data, progress=False)),
        "layer_errors": seconds(lambda: octavo.layer_errors(net, q, data, progress=False), 1),
        "sensitivity, estimate": seconds(
            lambda: octavo.sensitivity(
                net, calibration=data[:1], data=data, exact=False, target=target, progress=False
            ),
            1,
        ),
    }
    reference, few = q.lower("reference"), data[:2]
    started = time.perf_counter()
    with torch.no_grad():
        for batch in few:
            reference(batch)
    one_pass = (time.perf_counter() - started) * len(data) / len(few)
    found["naive: a pass for each layer"] = layers * one_pass
    for name, value in found.items():
        report.rows.append(
            {
                "network": "resnet50",
                "what": name,
                "seconds": value,
                "/ float pass": value / found["float pass"],
                "/ calibration pass": value / found["calibration pass"],
            }
        )
    return [
        Goal(
            "layer_errors over a float pass",
            found["layer_errors"] / found["float pass"],
            ERRORS_LIMIT,
        ),
        Goal(
            f"estimate of {layers} layers over a calibration pass",
            found["sensitivity, estimate"] / found["calibration pass"],
            ESTIMATE_LIMIT,
        ),
    ]


def correlations(report: Report) -> None:
    """The estimate against one layer at a time."""
    data = hard_digits.load()
    labelled = list(zip(data.test[:512].split(64), data.test_labels[:512].split(64), strict=True))
    for name, make in nets.FOR_DIGITS.items():
        net = hard_digits.trained(name, make, data)
        started = time.perf_counter()
        found = octavo.sensitivity(
            net, calibration=data.calibration, data=labelled, target="x86", progress=False
        )
        report.rows.append(
            {
                "network": name,
                "what": f"{len(found.layers)} layers one at a time, {found.samples} images",
                "seconds": time.perf_counter() - started,
                "Spearman": found.spearman(),
            }
        )


def culprits(report: Report) -> list[Goal]:
    """In how many random networks the planted layer ranks first."""
    goals = []
    for kind in ("weight", "activation"):
        first = {"estimate": 0, "measured": 0, "layer_errors": 0, "the report": 0}
        for seed in range(TRIALS):
            net, x, culprit = planted(kind, seed)
            found = octavo.sensitivity(net, calibration=[x], data=[x], target="x86", progress=False)
            first["measured"] += found.layers[0].layer == culprit
            least = min(found.layers, key=lambda layer: layer.estimate_db)
            first["estimate"] += least.layer == culprit
            q = octavo.quantize(net, calibration=[x], target="x86", progress=False)
            errors = octavo.layer_errors(net, q, [x], runtime="reference", progress=False)
            first["layer_errors"] += culprit in repairs(errors, q.plan)[0].parts
            first["the report"] += culprit in repairs(errors, q.plan, found)[0].parts
        for how, count in first.items():
            goals.append(Goal(f"planted {kind}, ranked first by {how}", count, TRIALS, False))
    return goals


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    options = parsed(parser(__doc__), words)
    report = Report(
        "analysis",
        "Layer errors and sensitivity",
        {"batches": BATCHES, "batch": BATCH, "trials": TRIALS},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        report.goals += costs(report)
        correlations(report)
        report.goals += culprits(report)
    report.finish(options.out)


if __name__ == "__main__":
    main()
