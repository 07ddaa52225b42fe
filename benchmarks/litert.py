"""LiteRT files beside the oracle: networks trained on digits, and the zoo's.

Each is quantized for the target `edge` and written. "equal": top-1 decisions that are the oracle's,
by XNNPACK's kernels and by LiteRT's reference kernels. "of the oracle": integers of the worst layer
that are the oracle's, given what it gave the layer, and the largest step that one is off. "size":
the file over the bytes of the integers that the model's weights are, after 50 kB are taken off.
Weights of the zoo are random, so that a step in one layer moves decisions which a trained network
has made.

    python -m benchmarks.litert --networks resnet18 mobilenet_v2
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from benchmarks import hard_digits, nets
from benchmarks.report import Goal, Report, parsed, parser, problem
from octavo.cli.demo.demo import trained_net
from octavo.errors import OctavoError
from octavo.graph.cuts import Cuts
from octavo.measuring.parity import _compared_layers
from octavo.runtimes.litert.export import to_tflite
from octavo.runtimes.litert.interpreter import Program
from octavo.runtimes.litert.runtime import Programs
from octavo.runtimes.options import Options
from octavo.runtimes.timing import interleave

import zoo  # isort: skip

DEMO = "demo's network"
ZOO = """
    unet crnn deepspeech tcn conformer yolo_like pointnet autoencoder edsr resnet18 mobilenet_v2
    mobilenet_v3_small efficientnet_b0 shufflenet_v2_x0_5 squeezenet1_1 densenet121 googlenet
    mnasnet0_5 regnet_y_400mf convnext_tiny vit_b_32 bert distilbert mobilebert
""".split()
SAMPLES, EQUAL, SIZE, ALLOWED = 256, 99.9, 1.02, 50_000
XNNPACK, REFERENCE, LAYERS = "equal %", "equal % by reference", "of the oracle %"


@dataclass(frozen=True)
class Case:
    name: str
    net: nn.Module
    calibration: list[Any]
    test: Sequence[Tensor]  # a tensor for each input
    trained: bool


def cases(names: Sequence[str]) -> Iterator[Case]:
    if DEMO in names:
        demo, loaders = trained_net()
        test = torch.cat([images for images, _ in loaders.test])[:SAMPLES]
        yield Case(DEMO, demo, [images for images, _ in loaders.calibration], [test], True)
    if set(names) & set(nets.FOR_DIGITS):
        data = hard_digits.load()
        for name, make in nets.FOR_DIGITS.items():
            if name in names:
                net = hard_digits.trained(name, make, data)
                yield Case(name, net, data.calibration, [data.test[:SAMPLES]], True)
    for name in ZOO:
        if name in names:
            entry = zoo.BY_NAME[name]
            args, given = zoo.arguments(entry.example(8))
            test = [*args, *given.values()]
            yield Case(name, entry.build(), [entry.example(4)], test, False)


def row(case: Case) -> dict[str, Any]:
    """One network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        q = octavo.quantize(case.net, calibration=case.calibration, target="edge", progress=False)
    started = time.perf_counter()
    written = to_tflite(q.graph)
    found: dict[str, Any] = {"network": case.name, "s": round(time.perf_counter() - started, 1)}
    held = [t for t in q.graph.constants.values() if t.dtype in (torch.int8, torch.uint8)]
    integers = sum(tensor.numel() for tensor in held)
    found["MB"] = round(len(written.data) / 1e6, 2)
    found["size"] = round((len(written.data) - ALLOWED) / integers, 3)
    oracle, programs = q.lower("reference"), {k: Program(written, k) for k in KERNELS}
    count = len(case.test[0])
    samples = [[tensor[i : i + 1] for tensor in case.test] for i in range(count)]
    with torch.no_grad():
        expected = [_decided(oracle.lowered.run(*sample)) for sample in samples]
        for kernels, column in KERNELS.items():
            results = [_decided(programs[kernels].run(sample)) for sample in samples]
            same = [torch.equal(a, b) for a, b in zip(expected, results, strict=True)]
            found[column] = round(100 * sum(same) / count, 2)
        few = [tensor[:8] for tensor in case.test]
        cuts = Cuts.of(q.graph, few)
        layers = _compared_layers(cuts, Programs(cuts.graph, Options()).run)
    found[LAYERS] = round(100 * (1 - max(layer.unequal for layer in layers)), 3)
    found["largest step"] = max(layer.steps or 0 for layer in layers)
    torchs = q.lower("torch").lowered.run
    runs = {
        "ms": lambda: programs["xnnpack"].run(samples[0]),
        "ms of torch": lambda: torchs(*samples[0]),
    }
    times = interleave(runs, budget_s=10)
    return found | {name: round(1e3 * latency.median_s, 3) for name, latency in times.items()}


KERNELS = {"xnnpack": XNNPACK, "reference": REFERENCE}


def _decided(results: Sequence[Any]) -> Tensor:
    """The class of a sample, or of each of its places: the first result's largest score."""
    return next(r for r in results if isinstance(r, Tensor)).flatten(1).argmax(-1)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    known = [DEMO, *nets.FOR_DIGITS, *ZOO]
    made.add_argument("--networks", nargs="*", default=known, choices=known)
    options = parsed(made, words)
    report = Report("litert", "LiteRT files beside the oracle", {"test samples": SAMPLES})
    for case in cases(options.networks):
        try:
            found = row(case)
        except OctavoError as error:
            report.rows.append({"network": case.name, "error": problem(error)})
            continue
        report.rows.append(found)
        report.goals.append(Goal(f"{case.name}: size", found["size"], SIZE))
        if case.trained:
            same = found[XNNPACK]
            report.goals.append(Goal(f"{case.name}: top-1, %", same, EQUAL, at_most=False))
    report.finish(options.out)


if __name__ == "__main__":
    main()
