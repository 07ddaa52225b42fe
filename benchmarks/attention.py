"""What int8 attention costs in accuracy: a small vision transformer on hard digits.

Static int8 with attention in float (a rule keeps it so), and with int8 attention products, as x86
has them by default, against torch.ao FX in the same run. The columns are those of `accuracy`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

import octavo
from benchmarks import accuracy, hard_digits, nets
from benchmarks.peers import FX_CPUS, fx
from benchmarks.report import Goal, Report, parsed, parser

NETWORK, EPOCHS, LEARNING_RATE, BATCH = "small ViT", 52, 1e-3, 32
PRODUCTS = "scaled_dot_product_attention"
Maker = Callable[[], nn.Module]


def network(data: hard_digits.HardDigits) -> nn.Module:
    """Trained in about six minutes on one core, or from the cache."""
    return hard_digits.trained(NETWORK, nets.SmallViT, data, EPOCHS, LEARNING_RATE, BATCH)


def contenders(net: nn.Module, calibration: list[Tensor]) -> dict[tuple[str, str, str], Maker]:
    """(who, how it runs, for which CPUs) -> what makes its model."""

    def ours(target: str, products: bool, runtime: str) -> Maker:
        def make() -> nn.Module:
            rule = octavo.static_qconfig(target) if products else None
            mapping = octavo.QConfigMapping().set_object_type(PRODUCTS, rule)
            with warnings.catch_warnings():  # what has no kernel stands in the JSON file
                warnings.simplefilter("ignore", octavo.OctavoWarning)
                q = octavo.quantize(
                    net, calibration=calibration, qconfig=mapping, target=target, progress=False
                )
                return q.lower(runtime)

        return make

    def theirs(engine: str) -> Maker:
        return lambda: fx(net, calibration, engine, reference=True)

    host = octavo.host_target()
    makers: dict[tuple[str, str, str], Maker] = {}
    for products, words in ((False, ""), (True, ", int8 attention")):
        who = f"Octavo {host}{words}"
        makers[who, "int8 kernels", accuracy.CPUS[host]] = ours(host, products, "torch")
        for target, cpus in accuracy.CPUS.items():
            who = f"Octavo {target}{words}"
            makers[who, "reference", cpus] = ours(target, products, "reference")
    for engine, cpus in FX_CPUS.items():
        makers[f"FX {engine}", "reference", cpus] = theirs(engine)
    return makers


def main(words: Sequence[str] | None = None) -> None:
    """Train (or take from the cache), quantize, measure, report."""
    options = parsed(parser(__doc__), words)
    data = hard_digits.load()
    net = network(data)
    report = Report(
        "attention",
        "Static accuracy of a vision transformer on hard digits",
        {
            "calibration images": sum(map(len, data.calibration)),
            "test images": len(data.test),
        },
    )
    report.rows = accuracy.rows_of(NETWORK, net, data, contenders(net, data.calibration))
    report.goals = [
        Goal(f"{row['contender']}, {row['runs']}: drop", row.get("drop"), accuracy.LARGEST_DROP)
        for row in report.rows
        if row["contender"].startswith("Octavo")
    ]
    report.details = {"without a kernel": without_a_kernel(net, data.calibration[:1])}
    report.finish(options.out)


def without_a_kernel(net: nn.Module, calibration: list[Tensor]) -> dict[str, Any]:
    """Which int8 layers run in float on this CPU, and why."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        target = octavo.host_target()
        mapping = octavo.QConfigMapping().set_object_type(PRODUCTS, octavo.static_qconfig(target))
        q = octavo.quantize(
            net, calibration=calibration, qconfig=mapping, target=target, progress=False
        )
    return dict(q.lowered.fallbacks)


if __name__ == "__main__":
    main()
