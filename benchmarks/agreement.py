"""Does the `torch` runtime compute what the reference computes?

Each layer alone, fed the same integers (recorded from the reference run): the largest difference in
quantization steps and the share of equal values. Then end to end: equal top-1 decisions, and the
SQNR of the logits with the reference as the signal. On the demo's network and the digit networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from benchmarks import hard_digits, layers, nets
from benchmarks.report import Goal, Report, parsed, parser
from octavo.cli.demo.demo import trained_net
from octavo.measuring.metrics import Likeness

IMAGES = 256  # for each layer alone
DEMO = "demo's network"
MOST_UNEQUAL = "most unequal, per million"
DECIDING = (DEMO, "small ResNet")


@dataclass(frozen=True)
class Case:
    name: str
    net: nn.Module
    calibration: list[Tensor]
    test: Tensor


def cases(names: Sequence[str]) -> Iterator[Case]:
    if DEMO in names:
        demo, loaders = trained_net()
        test = torch.cat([images for images, _ in loaders.test])
        yield Case(DEMO, demo, [images for images, _ in loaders.calibration], test)
    data = hard_digits.load()
    for name, make in nets.FOR_DIGITS.items():
        if name in names:
            net = hard_digits.trained(name, make, data)
            yield Case(name, net, data.calibration, data.test)


def layer_agreements(q: octavo.QuantizedModel, images: Tensor) -> list[layers.Agreement]:
    """Every layer of a quantized model alone."""
    return list(layers.agreements(q.graph, images))


def end_to_end(q: octavo.QuantizedModel, images: Tensor) -> Likeness:
    """The torch runtime's logits against the reference's."""
    likeness, reference = Likeness(), q.lower("reference")
    for batch in images.split(250):
        likeness.update(reference(batch), q(batch))
    return likeness


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    known = [DEMO, *nets.FOR_DIGITS]
    made.add_argument("--nets", nargs="*", default=known, choices=known)
    made.add_argument("--target", default=octavo.host_target(), help="default: %(default)s")
    options = parsed(made, words)
    report = Report(
        "agreement",
        "The torch runtime against the reference",
        {"target": options.target, "images for each layer": IMAGES},
        notes=["every layer's figures are in the JSON file, under details"],
    )
    for case in cases(options.nets):
        q = octavo.quantize(
            case.net, calibration=case.calibration, target=options.target, progress=False
        )
        found = layer_agreements(q, case.test[:IMAGES])
        row = _row(case.name, q, found, end_to_end(q, case.test))
        report.rows.append(row)
        report.details[case.name] = [vars(layer) for layer in found]
        if case.name in DECIDING:
            report.goals += _goals(case.name, row)
    report.finish(options.out)


def _row(
    name: str, q: octavo.QuantizedModel, found: list[layers.Agreement], whole: Likeness
) -> dict[str, Any]:
    worst = min(found, key=lambda layer: layer.equal_percent)
    return {
        "network": name,
        "layers": len(found),
        "without a kernel": len(q.lowered.fallbacks),
        "largest step": max(layer.max_step for layer in found),
        MOST_UNEQUAL: 1e6 * (1 - worst.equal / worst.values),
        "in layer": f"{worst.name} ({worst.kernel})",
        "top-1 agreement %": whole.agreement,
        "SQNR dB": whole.sqnr_db,
    }


def _goals(name: str, row: dict[str, Any]) -> list[Goal]:
    return [
        Goal(f"{name}: largest difference of a layer, steps", row["largest step"], 1),
        Goal(f"{name}: unequal values of a layer, per million", row[MOST_UNEQUAL], 1000),
        Goal(f"{name}: top-1 agreement, %", row["top-1 agreement %"], 99.9, at_most=False),
        Goal(f"{name}: SQNR of the logits, dB", row["SQNR dB"], 35, at_most=False),
    ]


if __name__ == "__main__":
    main()
