"""Is what was trained what is deployed? Trained models in evaluation mode against converted ones.

A MobileNetV2, a ResNet, a vision transformer and a GRU on hard digits are trained on with the
rounding of 8-bit and of 4-bit weights, then converted. Signal to noise and decisions of each
runtime, where the model itself in evaluation mode is what is right; `reference` is it to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import octavo
from benchmarks import attention, hard_digits, nets
from benchmarks.contest import sqnr_db
from benchmarks.hard_digits import HardDigits
from benchmarks.report import Goal, Report, parsed, parser
from examples.qat_digits import FLOAT_EPOCHS, LEARNING_RATE, logits, top1, train


@dataclass(frozen=True)
class Recipe:
    """A network, and how it is trained in float."""

    make: Callable[[], nn.Module]
    epochs: int = FLOAT_EPOCHS
    learning_rate: float = 4e-3
    batch: int = 128


# Named and trained as other benchmarks do it, whose networks are then taken from the cache.
NETWORKS = {
    "MobileNetV2 x0.35 seed 0": Recipe(nets.mobilenet_v2_small),
    "small ResNet": Recipe(nets.SmallResNet),
    attention.NETWORK: Recipe(
        nets.SmallViT, attention.EPOCHS, attention.LEARNING_RATE, attention.BATCH
    ),
    "small GRU": Recipe(nets.SmallGRU),
}
WEIGHT_BITS = (8, 4)
RUNTIMES = ("reference", "torch", "onnxruntime", "openvino")
JUDGED = ("reference", "torch")
EPOCHS = 4
AGREEMENT, SQNR = 99.8, 45.0


def rows_of(
    name: str, bits: int, net: nn.Module, data: HardDigits, images: Tensor, epochs: int
) -> Iterator[dict[str, Any]]:
    """A row for each runtime."""
    target = octavo.host_target()
    qat = octavo.prepare_qat(
        net,
        qconfig=octavo.qat_qconfig(target, weight_bits=bits),
        target=target,
        calibration=data.calibration,
        learned_scales=bits < 8,
        progress=False,
    )
    train(qat, net, data, epochs=epochs, rate=LEARNING_RATE[bits])
    trained, q = logits(qat, images), octavo.convert(qat)
    labels = data.test_labels[: len(images)]
    for runtime in RUNTIMES:
        row: dict[str, Any] = {"network": name, "weights": f"{bits} bits", "runtime": runtime}
        try:
            found = logits(q.lower(runtime), images)
        except octavo.OctavoError as error:
            yield row | {"error": str(error)}
            continue
        same = (trained.argmax(1) == found.argmax(1)).float().mean()
        yield row | {
            "top-1 %": top1(found, labels),
            "trained, top-1 %": top1(trained, labels),
            "agreement %": 100 * float(same),
            "SQNR dB": sqnr_db(trained, found),
        }


def main(words: Sequence[str] | None = None) -> None:
    """Train (the float networks come from the cache), convert, compare, report."""
    made = parser(__doc__)
    made.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    made.add_argument("--bits", nargs="*", type=int, default=list(WEIGHT_BITS), help="of weights")
    made.add_argument("--epochs", type=int, default=EPOCHS, help="with rounding; default: 4")
    made.add_argument("--float-epochs", type=int, help="default: each network's own")
    made.add_argument("--images", type=int, default=8000, help="of the test; default: all 8000")
    options = parsed(made, words)
    data = hard_digits.load()
    images = data.test[: options.images]
    report = Report(
        "qat_deployed",
        "Trained with rounding, and converted: each runtime against the trained model",
        {
            "epochs": options.epochs,
            "test images": len(images),
            "target": octavo.host_target(),
        },
    )
    for name in options.networks:
        recipe = NETWORKS[name]
        epochs = options.float_epochs or recipe.epochs
        net = hard_digits.trained(
            name, recipe.make, data, epochs, recipe.learning_rate, recipe.batch
        )
        for bits in options.bits:
            report.rows += rows_of(name, bits, net, data, images, options.epochs)
    for column, limit in (("agreement %", AGREEMENT), ("SQNR dB", SQNR)):
        for row in report.rows:
            if row["runtime"] in JUDGED:
                name = f"{row['network']}, {row['weights']}, {row['runtime']}: {column}"
                report.goals.append(Goal(name, row.get(column), limit, at_most=False))
    report.finish(options.out)


if __name__ == "__main__":
    main()
