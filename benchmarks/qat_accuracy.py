"""What quantization-aware training wins back, on MobileNetV2 (width 0.35) and hard digits.

For each seed a float network is trained, quantized statically with 8-bit and with 4-bit weights,
and trained on with the rounding of each: a fifth of the steps, see `EPOCHS`. Top-1 is on 8000 hard
views of 500 digits that no training has seen; the mean over the seeds, and how far they spread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import octavo
from benchmarks import hard_digits, nets
from benchmarks.contest import sqnr_db
from benchmarks.hard_digits import HardDigits
from benchmarks.report import Goal, Report, parsed, parser
from examples.qat_digits import EPOCHS, FLOAT_EPOCHS, LEARNING_RATE, logits, top1, train

NETWORK = "MobileNetV2 x0.35"
WEIGHT_BITS = (8, 4)
LARGEST_LOSS = 0.2  # points, of 8 bits
GAIN, LOSS_AT_FOUR = 3.0, 1.0  # points, of 4-bit weights: above static, or below float
AGREEMENT, SQNR = 99.8, 45.0


def rows_of(seed: int, data: HardDigits, epochs: int) -> Iterator[dict[str, Any]]:
    """Float, then static and trained with rounding at each width of the weights."""
    net = hard_digits.trained(
        f"{NETWORK} seed {seed}", nets.mobilenet_v2_small, data, FLOAT_EPOCHS, seed=seed
    )
    yield {"seed": seed, "how": "float", "top-1 %": top1(logits(net, data.test), data.test_labels)}
    for bits in WEIGHT_BITS:
        config = octavo.qat_qconfig("x86", weight_bits=bits)
        static = octavo.quantize(net, calibration=data.calibration, qconfig=config, progress=False)
        found = logits(static.lower("reference"), data.test)
        yield {
            "seed": seed,
            "how": f"static, {bits}-bit weights",
            "top-1 %": top1(found, data.test_labels),
        }
        qat = octavo.prepare_qat(
            net,
            qconfig=config,
            calibration=data.calibration,
            learned_scales=bits < 8,
            progress=False,
        )
        started = time.perf_counter()
        train(qat, net, data, epochs=epochs, rate=LEARNING_RATE[bits], seed=seed)
        seconds = time.perf_counter() - started
        trained = logits(qat, data.test)
        converted = logits(octavo.convert(qat).lower("reference"), data.test)
        same = (trained.argmax(1) == converted.argmax(1)).float().mean()
        yield {
            "seed": seed,
            "how": f"trained, {bits}-bit weights",
            "top-1 %": top1(converted, data.test_labels),
            "agreement %": 100 * float(same),
            "SQNR dB": sqnr_db(trained, converted),
            "seconds": seconds,
        }


def main(words: Sequence[str] | None = None) -> None:
    """Train (the float networks come from the cache), quantize, measure, report."""
    made = parser(__doc__)
    made.add_argument("--seeds", type=int, default=3, help="how many networks; default: 3")
    made.add_argument("--epochs", type=int, default=EPOCHS, help="with rounding; default: 16")
    options = parsed(made, words)
    data = hard_digits.load()
    report = Report(
        "qat_accuracy",
        f"{NETWORK} on hard digits: float, static, and trained with rounding",
        {"float epochs": FLOAT_EPOCHS, "epochs": options.epochs, "test images": len(data.test)},
    )
    rows = [row for seed in range(options.seeds) for row in rows_of(seed, data, options.epochs)]
    accuracy: dict[str, float] = {}
    for how in dict.fromkeys(row["how"] for row in rows):
        every = [row["top-1 %"] for row in rows if row["how"] == how]
        accuracy[how] = statistics.mean(every)
        spread = statistics.stdev(every) if len(every) > 1 else None
        report.rows.append({"how": how, "top-1 %": accuracy[how], "+- between seeds": spread})
    report.details = {"rows": rows}
    fp32, four = accuracy["float"], accuracy["trained, 4-bit weights"]
    eight = accuracy["trained, 8-bit weights"]
    gain, loss = four - accuracy["static, 4-bit weights"], fp32 - four
    report.goals = [
        Goal("8-bit weights: points below float", fp32 - eight, LARGEST_LOSS),
        Goal("4-bit weights: points above static", gain, GAIN, at_most=False)
        if gain >= GAIN or loss > LOSS_AT_FOUR
        else Goal("4-bit weights: points below float", loss, LOSS_AT_FOUR),
        Goal(
            "converted against trained: least agreement %",
            min(row["agreement %"] for row in rows if "agreement %" in row),
            AGREEMENT,
            at_most=False,
        ),
        Goal(
            "converted against trained: least SQNR dB",
            min(row["SQNR dB"] for row in rows if "SQNR dB" in row),
            SQNR,
            at_most=False,
        ),
    ]
    report.finish(options.out)


if __name__ == "__main__":
    main()
