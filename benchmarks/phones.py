"""Trained networks in the files for phones: are their decisions the oracle's?

Networks trained on hard digits and the demo's are quantized for `edge` and for `executorch`,
written, and run on test images one by one. "equal": top-1 decisions that are those of
the oracle, which computes the same integers in torch. "float", "oracle", "file": images that each
tells rightly. "lead": by how much the oracle's best score is over its second, in steps of its
scores: the median, and the most where decisions differ.

    python -m benchmarks.phones --networks "small ResNet" --epochs 12
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from benchmarks import attention, hard_digits, nets
from benchmarks.report import Goal, Report, parsed, parser, problem
from octavo.cli.demo.demo import trained_net
from octavo.errors import OctavoError
from octavo.runtimes.executorch.export import program_of
from octavo.runtimes.executorch.programs import LoadedProgram
from octavo.runtimes.litert.export import to_tflite
from octavo.runtimes.litert.interpreter import Program

DEMO = "demo's network"
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    **nets.FOR_DIGITS,
    "small LSTM": nets.SmallLSTM,
    "small GRU": nets.SmallGRU,
    attention.NETWORK: nets.SmallViT,
}
# What training takes besides the defaults.
TRAINING: Mapping[str, Mapping[str, Any]] = {
    attention.NETWORK: {
        "epochs": attention.EPOCHS,
        "learning_rate": attention.LEARNING_RATE,
        "batch": attention.BATCH,
    }
}
IMAGES, EQUAL = 8000, 99.9


@dataclass(frozen=True)
class Case:
    """A network, and images with their labels that it has not seen."""

    name: str
    net: nn.Module
    calibration: list[Tensor]
    images: Tensor
    labels: Tensor


def cases(names: Sequence[str], count: int, epochs: int | None) -> Iterator[Case]:
    if DEMO in names:
        net, loaders = trained_net()
        images, labels = (torch.cat(parts)[:count] for parts in zip(*loaders.test, strict=True))
        yield Case(DEMO, net, [batch for batch, _ in loaders.calibration], images, labels)
    data = hard_digits.load()
    for name, make in NETWORKS.items():
        if name in names:
            asked = {} if epochs is None else {"epochs": epochs}
            net = hard_digits.trained(name, make, data, **{**TRAINING.get(name, {}), **asked})
            test = data.test[:count], data.test_labels[:count]
            yield Case(name, net, data.calibration, *test)


def litert(q: octavo.QuantizedModel) -> Callable[[Tensor], Tensor]:
    """What its file computes of one image."""
    program = Program(to_tflite(q.graph))
    return lambda image: program.run([image])[0]


def executorch(q: octavo.QuantizedModel) -> Callable[[Tensor], Tensor]:
    """What its file computes of one image."""
    example = torch.zeros([1, *q.graph.inputs[0].sizes[1:]])
    program = LoadedProgram(program_of(q.graph, [example]))
    return lambda image: program.run([image])[0]


FILES = {"edge": litert, "executorch": executorch}
"""Target -> what runs its file."""


def row(case: Case, target: str) -> dict[str, Any]:
    """One network in one format."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        q = octavo.quantize(case.net, calibration=case.calibration, target=target, progress=False)
    run, oracle = FILES[target](q), q.lower("reference")
    with torch.no_grad():
        exact = torch.cat([case.net(images) for images in case.images.split(100)])
        wanted = torch.cat([oracle(images) for images in case.images.split(100)])
        found = torch.cat([run(image) for image in case.images.split(1)])
    best = wanted.sort(dim=1, descending=True).values
    ahead = (best[:, 0] - best[:, 1]) / _step(wanted)
    differs = found.argmax(1) != wanted.argmax(1)
    return {
        "network": case.name,
        "format": FILES[target].__name__,
        "equal %": _percent(~differs),
        "differ": int(differs.sum()),
        "scores equal %": _percent(found == wanted),
        "float %": _percent(exact.argmax(1) == case.labels),
        "oracle %": _percent(wanted.argmax(1) == case.labels),
        "file %": _percent(found.argmax(1) == case.labels),
        "lead": round(float(ahead.median()), 1),
        "lead where they differ": round(float(ahead[differs].max()), 1) if differs.any() else None,
    }


def _step(scores: Tensor) -> float:
    """The distance of two integers of the scores, which both formats round."""
    values = scores.unique()
    return float((values[1:] - values[:-1]).min())


def _percent(right: Tensor) -> float:
    return round(100 * float(right.double().mean()), 3)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    known = [DEMO, *NETWORKS]
    made.add_argument("--networks", nargs="*", default=known, choices=known)
    made.add_argument("--images", type=int, default=IMAGES)
    own = "of training on hard digits; without it the network's own number"
    made.add_argument("--epochs", type=int, help=own)
    options = parsed(made, words)
    settings = {"images": options.images, "epochs": options.epochs}
    report = Report("phones", "Trained networks in the files for phones", settings)
    report.resume(options.out)
    there = {row["network"] for row in report.rows}
    names = [name for name in options.networks if name not in there]
    for case in cases(names, options.images, options.epochs):
        for target, file in FILES.items():
            try:
                report.rows.append(row(case, target))
            except OctavoError as error:
                start = {"network": case.name, "format": file.__name__}
                report.rows.append(start | {"error": problem(error)})
        report.write(options.out)
    report.goals = [goal(row) for row in report.rows]
    report.finish(options.out)


def goal(row: Mapping[str, Any]) -> Goal:
    """That a file decides as the oracle does."""
    name = f"{row['network']}, {row['format']}: decisions equal, %"
    return Goal(name, row.get("equal %"), EQUAL, at_most=False)


if __name__ == "__main__":
    main()
