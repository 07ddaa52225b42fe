"""The tables of the articles that teach torch.ao.quantization, beside what octavo.compat gives.

The first article's network on real digits, quantized in its own words three ways (static, dynamic,
trained for 4 epochs at a learning rate of 0.01): size of the state dict on disk, accuracy on the
test set, time over it. And the third's ResNet-18 in FX mode at 224x224, batch 1: size and time; its
Flowers102 weights are not at hand, so they are random.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import nets
from benchmarks.ratios import Spread, ratio
from benchmarks.report import Goal, Report, parsed, parser
from octavo.cli.demo.demo import trained_net
from octavo.compat import quantization as tq
from octavo.compat.quantization.quantize_fx import convert_fx, prepare_fx
from octavo.runtimes.timing import interleave

from compat.networks import FUSED, Wrapped  # isort: skip  (nets lets the tests be imported)

# What the articles print: percent smaller, accuracy before and after, percent faster.
ARTICLES = {
    "static": (74.73, 98.53, 98.50, 15.75),
    "dynamic": (74.02, 98.53, 98.54, -2.26),
    "trained": (74.73, 98.53, 97.51, 0.32),
    "ResNet-18, FX": (75.0, None, None, 100 * (1 - 1 / 3.6)),
}
LARGEST = 0.27  # of the float model's size
EPOCHS, LEARNING_RATE = 4, 0.01

Batches = Iterable[tuple[Tensor, Tensor]]


def static(model: nn.Module, batches: Batches) -> nn.Module:
    """Fuse, wrap, prepare, calibrate, convert."""
    wrapped = Wrapped(tq.fuse_modules(model, FUSED, inplace=True))
    wrapped.qconfig = tq.get_default_qconfig("fbgemm")
    tq.prepare(wrapped, inplace=True)
    with torch.no_grad():
        for images, _ in batches:
            wrapped(images)
    converted: nn.Module = tq.convert(wrapped, inplace=True)
    return converted


def dynamic(model: nn.Module, batches: Batches) -> nn.Module:
    """One call."""
    converted: nn.Module = tq.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return converted


def trained(model: nn.Module, batches: Batches) -> nn.Module:
    """Fuse, wrap, prepare for training, train with SGD, convert."""
    wrapped = Wrapped(tq.fuse_modules_qat(model.train(), FUSED, inplace=True))
    wrapped.qconfig = tq.get_default_qat_qconfig("fbgemm")
    tq.prepare_qat(wrapped.train(), inplace=True)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=LEARNING_RATE)
    for _ in range(EPOCHS):
        for images, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(wrapped(images), labels).backward()
            optimizer.step()
    converted: nn.Module = tq.convert(wrapped.eval(), inplace=True)
    return converted


WAYS: dict[str, Callable[[nn.Module, Batches], nn.Module]] = {
    "static": static,
    "dynamic": dynamic,
    "trained": trained,
}


def smaller(one: nn.Module, other: nn.Module) -> float:
    """By how many percent the second's state dict is smaller on disk than the first's."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.pth"
        sizes = []
        for model in (one, other):
            torch.save(model.state_dict(), file)
            sizes.append(file.stat().st_size)
    return 100 * (1 - sizes[1] / sizes[0])


@torch.no_grad()
def accuracy(model: nn.Module, batches: Batches) -> float:
    """Top-1 in percent."""
    right = [model(images).argmax(1) == labels for images, labels in batches]
    return 100 * float(torch.cat(right).float().mean())


@torch.no_grad()
def over_fp32(model: nn.Module, quantized: nn.Module, images: Sequence[Tensor]) -> Spread:
    """Time of the quantized model over the float one's, round by round."""

    def all_of(one: nn.Module) -> Callable[[], Any]:
        return lambda: [one(x) for x in images]

    times = interleave({"fp32": all_of(model), "int8": all_of(quantized)}, progress=False)
    return ratio(times["int8"].rounds, times["fp32"].rounds)


def row(
    how: str, model: nn.Module, quantized: nn.Module, images: Sequence[Tensor], test: Batches | None
) -> dict[str, Any]:
    """One line: ours beside the article's."""
    before = None if test is None else accuracy(model, test)
    after = None if test is None else accuracy(quantized, test)
    time = over_fp32(model, quantized, images)
    size, was, became, faster = ARTICLES[how]
    return {
        "how": how,
        "% smaller": smaller(model, quantized),
        "article": size,
        "top-1 before": before,
        "after": after,
        "article before": was,
        "article after": became,
        "time / fp32": time.median,
        "article's": 1 - faster / 100,
    }


def resnet_row() -> dict[str, Any]:
    """The article's FX flow on a ResNet-18."""
    model = nets.net_for_images("resnet18").eval()
    example = torch.randn(1, 3, 224, 224)
    mapping = tq.QConfigMapping().set_global(tq.get_default_qconfig("x86"))
    prepared = prepare_fx(copy.deepcopy(model), mapping, example)
    with torch.no_grad():
        for _ in range(10):
            prepared(torch.randn(10, 3, 224, 224))
    return row("ResNet-18, FX", model, convert_fx(prepared), [example], None)


def main(words: Sequence[str] | None = None) -> None:
    """Train, quantize in the articles' words, measure, report."""
    options = parsed(parser(__doc__), words)
    net, loaders = trained_net()
    test = list(loaders.test)
    images = [x for x, _ in test]
    report = Report("articles", "The articles' tables", {"test images": sum(map(len, images))})
    for how, quantized in WAYS.items():
        made = quantized(copy.deepcopy(net).eval(), loaders.train)
        report.rows.append(row(how, net.eval(), made.eval(), images, test))
    report.rows.append(resnet_row())
    for one in report.rows:
        how = one["how"]
        report.goals.append(Goal(f"{how}: size / fp32 size", 1 - one["% smaller"] / 100, LARGEST))
        report.goals.append(Goal(f"{how}: time / fp32", one["time / fp32"], 1.0))
        if one["after"] is not None:
            drop = one["article before"] - one["article after"]
            lost = one["top-1 before"] - one["after"]
            report.goals.append(Goal(f"{how}: points lost", lost, max(drop, 0.0)))
    report.notes = [
        "the article's accuracies are on MNIST, ours on scikit-learn's digits; its times are those "
        "of its own machine, with torch.ao",
    ]
    report.finish(options.out)


if __name__ == "__main__":
    main()
