"""Train with rounding: what 8-bit and 4-bit weights cost, and what training wins back.

The demo's network and a MobileNetV2 (width 0.35, 32x32) learn scikit-learn's real digits, made hard
by turning, stretching, moving and noise. Each is then quantized statically, and trained on with the
rounding that it will meet. Writes ``NETWORK-BITS.octavo``, ``curves.png`` and ``results.json``.

    python -m examples.qat_digits --out build/qat

Kill it whenever you like: it goes on after the last epoch that it finished.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from benchmarks import hard_digits, nets  # first: they let torchvision be imported
from benchmarks.hard_digits import TEST_DIGITS, VIEWS, HardDigits
from octavo.cli.demo.demo import Net
from octavo.model.files.atomic import replacing
from octavo.progress import track
from octavo.qat import DistillationLoss, QATModel, Schedule

BATCH = 128
FLOAT_EPOCHS, EPOCHS = 80, 16
BITS = (8, 4)
# Of AdamW. The float training's largest is 4e-3. A hundredth of it suits 8 bits (Wu et al. 2020,
# arXiv:2004.09602, section 6); weights of 4 bits have farther to go.
LEARNING_RATE = {8: 4e-5, 4: 1e-3}


class DemoNet(Net):
    """The demo's network, which takes 28x28 images, on the middle of larger ones."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., 2:30, 2:30])


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "demo": DemoNet,
    "MobileNetV2 x0.35": nets.mobilenet_v2_small,
}


@dataclass
class Progress:
    """Where a training stands."""

    epoch: int = 0
    losses: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)


def train(
    qat: QATModel,
    teacher: nn.Module,
    data: HardDigits,
    *,
    epochs: int = EPOCHS,
    rate: float,
    seed: int = 0,
    test: Tensor | None = None,
    checkpoint: Path | None = None,
) -> Progress:
    """Train in place, and leave the model in evaluation mode.

    Args:
        qat: from `octavo.prepare_qat`.
        teacher: the float model; half of the loss is towards its scores.
        data: digits, made hard anew in each epoch.
        epochs: of all digits.
        rate: the learning rate at the start; it falls to 0 by a half cosine.
        seed: of order and augmentation.
        test: images to find the top-1 of after each epoch, with the labels of the test set.
        checkpoint: file that is written after each epoch, and gone on from where it exists.
    """
    steps = epochs * (len(data.digits) // BATCH)
    schedule = Schedule(steps)
    loss_of = DistillationLoss(teacher)
    optimizer = torch.optim.AdamW(qat.parameters(), lr=rate, weight_decay=0.0)
    anneal = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    progress = Progress()
    parts = {"model": qat, "optimizer": optimizer, "anneal": anneal, "schedule": schedule}
    if checkpoint is not None and checkpoint.exists():
        progress = resumed(checkpoint, parts)
    while progress.epoch < epochs:
        qat.train()
        torch.manual_seed(1000 * seed + progress.epoch)  # of dropout
        losses = []
        for images, labels in track(batches(data, seed, progress.epoch), "an epoch"):
            schedule.start(qat)
            loss = loss_of(qat(images), labels, images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            anneal.step()
            schedule.step()
            losses.append(loss.detach())
        progress.epoch += 1
        progress.losses.append(float(torch.stack(losses).mean()))
        qat.eval()
        if test is not None:
            progress.top1.append(top1(logits(qat, test), data.test_labels))
        if checkpoint is not None:
            kept = {name: part.state_dict() for name, part in parts.items()}
            with replacing(checkpoint) as file:
                torch.save({**kept, "progress": vars(progress)}, file)
    qat.eval()
    return progress


def resumed(checkpoint: Path, parts: dict[str, Any]) -> Progress:
    """Put a checkpoint into the parts of a training."""
    saved = torch.load(checkpoint, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return Progress(**saved["progress"])


def batches(data: HardDigits, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The digits of an epoch, in an order and in views of its own."""
    chance = torch.Generator().manual_seed(1000 * seed + epoch)
    order = torch.randperm(len(data.digits), generator=chance)
    for chosen in order.split(BATCH)[: len(data.digits) // BATCH]:
        yield hard_digits.hardened(data.digits[chosen], chance), data.digit_labels[chosen]


def logits(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Scores of all images, float ``[N, 10]``."""
    with torch.no_grad():
        return torch.cat([model(batch) for batch in images.split(250)])


def top1(scores: Tensor, labels: Tensor) -> float:
    """Percent of right answers."""
    return 100 * float((scores.argmax(1) == labels).float().mean())


def run(network: str, data: HardDigits, options: argparse.Namespace) -> dict[str, Any]:
    """Float, static and trained with rounding: top-1, by how it was made, and the curves."""
    out: Path = options.out
    net = hard_digits.trained(
        network, NETWORKS[network], data, options.float_epochs, cache=options.out
    )
    found: dict[str, Any] = {"float": top1(logits(net, data.test), data.test_labels)}
    for bits in options.bits:
        config = octavo.qat_qconfig(octavo.host_target(), weight_bits=bits)
        target = octavo.host_target()
        static = octavo.quantize(
            net, calibration=data.calibration, qconfig=config, target=target, mode="static"
        ).lower("reference")
        qat = octavo.prepare_qat(
            net,
            qconfig=config,
            target=target,
            calibration=data.calibration,
            learned_scales=bits < 8,
        )
        progress = train(
            qat,
            net,
            data,
            epochs=options.epochs,
            rate=LEARNING_RATE.get(bits, LEARNING_RATE[4]),
            test=data.test,
            checkpoint=out / f"{network}-{bits}.checkpoint",
        )
        q = octavo.convert(qat)
        q.save(out / f"{network}-{bits}.octavo")
        found[f"{bits} bits"] = {
            "static": top1(logits(static, data.test), data.test_labels),
            "trained": top1(logits(q.lower("reference"), data.test), data.test_labels),
            "by epoch": progress.top1,
            "losses": progress.losses,
        }
        print(f"{network}, {bits}-bit weights: float {found['float']:.2f} %, ", end="")
        print("static {static:.2f} %, trained {trained:.2f} %".format(**found[f"{bits} bits"]))
    return found


def draw(results: dict[str, dict[str, Any]], file: Path) -> None:
    """Top-1 over the epochs, beside that of float and of static quantization."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5.5 * len(results), 4.2), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, (network, found) in zip(panels, results.items(), strict=True):
        axes.axhline(found["float"], color="#444444", label="float")
        for color, (bits, row) in zip(
            ("#4c72b0", "#dd8452"), list(found.items())[1:], strict=False
        ):
            epochs = range(1, len(row["by epoch"]) + 1)
            axes.plot(epochs, row["by epoch"], "o-", color=color, markersize=3, label=f"{bits}")
            axes.axhline(row["static"], color=color, linestyle=":", label=f"{bits}, static")
        axes.set(title=network, xlabel="epoch with rounding", ylabel="top-1 in %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, title="weights")
    figure.savefig(file, dpi=150)


def main(words: Sequence[str] | None = None) -> None:
    """Train, quantize, report."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, default=Path("build/qat"), help="folder for the results")
    made.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    made.add_argument("--bits", nargs="*", type=int, default=list(BITS), help="of the weights")
    made.add_argument("--epochs", type=int, default=EPOCHS, help="with rounding")
    made.add_argument("--float-epochs", type=int, default=FLOAT_EPOCHS)
    made.add_argument("--views", type=int, default=VIEWS, help="of each test digit")
    options = made.parse_args(words)
    options.out.mkdir(parents=True, exist_ok=True)
    data = hard_digits.load()
    images = TEST_DIGITS * options.views
    data = replace(data, test=data.test[:images], test_labels=data.test_labels[:images])
    results = {network: run(network, data, options) for network in options.networks}
    draw(results, options.out / "curves.png")
    with replacing(options.out / "results.json") as file:
        file.write_text(json.dumps(results, indent=1) + "\n")
    print(f"results and curves: {options.out}")


if __name__ == "__main__":
    main()
