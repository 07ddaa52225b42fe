"""Weights of four bits and activations of eight, static, on networks trained on hard digits.

A ResNet, MobileNetV2 and a vision transformer, with the same 256 calibration images and without a
label: rounding to nearest, methods by themselves and the recipes of `effort=`, with all weights in
four bits; and with depthwise convolutions in eight, which have few weights, of which each counts.
"four bits" is the part of the weights that has four. On the test images by exact arithmetic: the
SQNR of the outputs, top-1, what it has lost and the half of the 95 % interval of that, and the
seconds of the whole call.

    python -m benchmarks.four_bits --resume --docs docs/guide.md
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import octavo
from benchmarks import accuracy, efforts, hard_digits
from benchmarks.efforts_ways import EFFORTS, FAST, FLOAT, Settings, ours
from benchmarks.hard_digits import CALIBRATION_IMAGES, HardDigits
from benchmarks.report import Goal, Report, parsed, parser, write_table
from benchmarks.tasks import TASKS

MOST_LOST = 1.0  # points of top-1
FOUR, EIGHT = octavo.static_qconfig(weight_bits=4), octavo.static_qconfig()
ALL_EIGHT, ALL_FOUR, DEPTHWISE = "none", "all", "all but depthwise"  # layers of four bits
RECIPES = {way: settings for way, settings in EFFORTS.items() if way != FAST}
METHODS: Mapping[str, Settings] = {
    "to nearest": {},
    "Clip, GPTQ": {"weights": [octavo.Clip(), octavo.GPTQ()]},
    **RECIPES,
}
# network -> which of its layers have four bits
NETWORKS: Mapping[str, Sequence[str]] = {
    "small ResNet": (ALL_FOUR,),
    "MobileNetV2 x0.5": (ALL_FOUR, DEPTHWISE),
    "small ViT": (ALL_FOUR,),
}
Row = Mapping[str, Any]
Key = tuple[str, str, str]


def key_of(row: Row) -> Key:
    """Which network it is of, which of its layers have four bits, and which way."""
    return row["network"], row["layers"], row["way"]


def rules(net: nn.Module, layers: str) -> octavo.QConfigMapping:
    """Four bits for the layers that are to have them."""
    mapping = octavo.QConfigMapping().set_global(EIGHT if layers == ALL_EIGHT else FOUR)
    for path, layer in net.named_modules():
        if layers == DEPTHWISE and isinstance(layer, nn.Conv2d) and layer.groups > 1:
            mapping.set_module_name(path, EIGHT)
    return mapping


def share_of_four(net: nn.Module, layers: str) -> float:
    """The part of the weights of convolutions and linear layers that is to have four bits."""
    sizes = {True: 0, False: 0}
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            is_depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
            has_four = layers == ALL_FOUR or (layers == DEPTHWISE and not is_depthwise)
            sizes[has_four] += layer.weight.numel()
    return sizes[True] / sum(sizes.values())


def ways_of(layers: Sequence[str]) -> Iterator[tuple[str, str, Settings]]:
    """Which layers have four bits, the way and its settings."""
    yield ALL_EIGHT, FAST, {}
    for four in layers:
        for way, settings in METHODS.items():
            yield four, way, settings


def rows_of(name: str, digits: HardDigits, there: Collection[Key]) -> Iterator[dict[str, Any]]:
    """A row for float and each way, but for those that are there."""
    task = TASKS[name]
    net, (images, truth) = task.net(digits), task.problem.test(digits)
    calibration = task.problem.calibration(digits, 0)
    fp32 = accuracy.logits(net, images)
    judge = partial(efforts.judged, fp32=fp32, truth=truth, metric=task.problem.metric)
    labels = {"network": name, "layers": ALL_EIGHT, "way": FLOAT}
    if key_of(labels) not in there:
        yield labels | judge(fp32)
    for layers, way, settings in ways_of(NETWORKS[name]):
        labels = {"network": name, "layers": layers, "way": way}
        if key_of(labels) in there:
            continue
        kept: list[str] = []
        how = {"qconfig": rules(net, layers), **settings}
        make = partial(ours, net, calibration, how, kept)
        row = accuracy.row_of(labels, make, images, judge)
        yield row | {"four bits": share_of_four(net, layers), "kept": ", ".join(kept)}


def table_of(rows: Sequence[Row]) -> str:
    """In Markdown, for the docs."""
    lines = [
        "| four bits, static | layers in four bits | of the weights | way | top-1 % | lost | dB |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        if row["way"] == FLOAT or "error" in row:
            continue
        lost = f"{row['drop']:.2f} ± {row['+-']:.2f}"
        numbers = f"{row['value']:.2f} | {lost} | {row['SQNR dB']:.1f}"
        share = f"{100 * row['four bits']:.0f} %"
        lines.append(f"| {row['network']} | {row['layers']} | {share} | {row['way']} | {numbers} |")
    return "\n".join(lines)


def goals_of(rows: Sequence[Row]) -> list[Goal]:
    """Of each network what the recipes lose; of MobileNetV2 with depthwise layers in eight bits."""
    return [
        Goal(f"{row['network']}: {row['way']}, {row['layers']}", row.get("drop"), MOST_LOST)
        for row in rows
        if row["way"] in RECIPES and row["layers"] == NETWORKS[row["network"]][-1]
    ]


def main(words: Sequence[str] | None = None) -> None:
    """Quantize, measure, report."""
    made = parser(__doc__)
    made.add_argument("--nets", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    made.add_argument("--resume", action="store_true", help="keep the rows of an earlier run")
    made.add_argument("--docs", type=Path, help="file whose table is written anew")
    options = parsed(made, words)
    digits = hard_digits.load()
    report = Report(
        "four_bits",
        "Static weights of four bits on hard digits",
        {"calibration images": CALIBRATION_IMAGES},
    )
    if options.resume:
        report.resume(options.out)
    there = {key_of(row) for row in report.rows}
    for name in options.nets:
        for row in rows_of(name, digits, there):
            report.rows.append(row)
            report.write(options.out)
    order = list(NETWORKS)
    report.rows.sort(key=lambda row: order.index(row["network"]))
    report.goals = goals_of(report.rows)
    if options.docs:
        write_table(table_of(report.rows), options.docs)
    report.finish(options.out)


if __name__ == "__main__":
    main()
