"""Do all runtimes make the decisions of the oracle? On networks trained on hard digits.

Each runtime on a model for this CPU, ONNX Runtime and OpenVINO also on one for themselves. "a step
off": of the integers that each layer makes of the oracle's inputs, those that differ, per million;
the mean over the layers, and the worst layer. Then end to end, on all test images.

What a network makes of such differences is its own: "the oracle, nudged" is the oracle against
itself, where so many integers of every layer, picked at random, are moved by one step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from benchmarks import hard_digits, nets
from benchmarks.report import Goal, Report, parsed, parser
from octavo.graph.graph import Graph
from octavo.graph.program import compile_steps, steps_of
from octavo.graph.qdq import QUANTIZE
from octavo.measuring.metrics import Likeness
from octavo.measuring.parity import LayerParity
from octavo.numerics import octavo_operators

BATCH = 250  # the layers are compared on the first
NUDGED = (10, 100, 1000)  # per million
MEAN, WORST, LAYER = "a step off, per million", "worst layer", "which"
AGREEMENT, SQNR = "top-1 agreement %", "SQNR dB"


def targets() -> dict[str, list[str]]:
    """Target -> the runtimes that run its model."""
    every = ["torch", "onnxruntime", "openvino"]
    return {
        octavo.host_target(): every,
        "onnxruntime": ["onnxruntime"],
        "openvino": ["openvino"],
    }


def quantized(net: nn.Module, calibration: list[Tensor], target: str) -> octavo.QuantizedModel:
    with warnings.catch_warnings():  # that another target's layers have no kernel in torch here
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        return octavo.quantize(net, calibration=calibration, target=target, progress=False)


def runtime_rows(q: octavo.QuantizedModel, batches: list[Tensor], runtimes: list[str]) -> Any:
    """A row for each runtime, and every layer's figures."""
    found = octavo.verify(q, batches, runtimes=runtimes)
    for runtime in found.runtimes:
        row: dict[str, Any] = {"target": q.target, "runtime": runtime.runtime}
        if runtime.error:
            yield row | {"error": runtime.error}, ()
            continue
        rounded = [layer for layer in runtime.layers if layer.steps is not None]
        worst = max(rounded, key=lambda layer: layer.unequal)
        row |= {MEAN: 1e6 * sum(layer.unequal for layer in rounded) / len(rounded)}
        row |= {WORST: 1e6 * worst.unequal, LAYER: worst.layer}
        yield row | {AGREEMENT: runtime.agreement, SQNR: runtime.sqnr_db}, runtime.layers


def nudged_rows(q: octavo.QuantizedModel, batches: list[Tensor]) -> Iterator[dict[str, Any]]:
    """The oracle against itself, some of its integers moved."""
    oracle = q.lower("reference").lowered.run
    with torch.no_grad():
        wanted = [oracle(batch) for batch in batches]
        for per_million in NUDGED:
            likeness, run = Likeness(), nudged(q.graph, per_million / 1e6)
            for batch, expected in zip(batches, wanted, strict=True):
                likeness.update(expected, run(batch))
            yield {
                "target": q.target,
                "runtime": "the oracle, nudged",
                MEAN: float(per_million),
                AGREEMENT: likeness.agreement,
                SQNR: likeness.sqnr_db,
            }


def nudged(graph: Graph, share: float, seed: int = 0) -> Callable[..., tuple[Any, ...]]:
    """The oracle, but for one step up or down in a share of all quantized values."""
    chance = torch.Generator().manual_seed(seed)

    def quantize(x: Tensor, scale: float, start: int, low: int, high: int, dtype: Any) -> Tensor:
        q = octavo_operators.quantize(x, scale, start, low, high, dtype)
        flat = q.flatten()
        count = int(torch.poisson(torch.tensor(share * len(flat)), generator=chance))
        picked = torch.randint(len(flat), (count,), generator=chance)
        moves = 2 * torch.randint(2, (count,), generator=chance) - 1
        flat[picked] = (flat[picked].to(torch.int32) + moves).clamp(low, high).to(dtype)
        return flat.view_as(q)

    rounding = {node.name for node in graph.nodes if node.op == QUANTIZE}
    steps = [
        replace(step, function=quantize) if step.out in rounding else step
        for step in steps_of(graph)
    ]
    inputs = [given.name for given in graph.inputs]
    return compile_steps(inputs, steps, graph.output_names(), graph.constants)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    made.add_argument("--nets", nargs="*", default=list(nets.FOR_DIGITS), choices=nets.FOR_DIGITS)
    options = parsed(made, words)
    data = hard_digits.load()
    batches = list(data.test.split(BATCH))
    report = Report(
        "parity",
        "Runtimes against the oracle on hard digits",
        {"test images": len(data.test), "images for each layer": BATCH},
        notes=["every layer's figures are in the JSON file, under details"],
    )
    for name in options.nets:
        net = hard_digits.trained(name, nets.FOR_DIGITS[name], data)
        for target, runtimes in targets().items():
            q = quantized(net, data.calibration, target)
            for row, layers in runtime_rows(q, batches, runtimes):
                label = f"{name}, {target} on {row['runtime']}"
                report.rows.append({"network": name} | row)
                report.details[label] = _figures(layers)
                goal = Goal(f"{label}: top-1 agreement, %", row.get(AGREEMENT), 99.9, False)
                report.goals.append(goal)
            if target == octavo.host_target():
                report.rows += [{"network": name} | row for row in nudged_rows(q, batches)]
    report.finish(options.out)


def _figures(layers: Sequence[LayerParity]) -> list[dict[str, Any]]:
    return [vars(layer) for layer in layers]


if __name__ == "__main__":
    main()
