"""From uint8 pixels to logits: a model that takes pixels against preprocessing in front of it.

All contenders are given the same uint8 images, ``[N, 3, size, size]`` as a DataLoader stacks them
or in channels-last order as a camera gives them. "floats, then int8" and "fp32" compute
``(x / 255 - mean) / std`` in torch first, as torchvision's transforms do. The weights are random,
the batch statistics are the network's own. Agreement is that of the two int8 models' decisions on
random images; both were calibrated on the same floats.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import octavo
from benchmarks import nets
from benchmarks.contest import Call, Maker, add_images, add_rounds, contest
from benchmarks.report import Goal, Report, parsed, parser

PIXELS, FLOATS = "int8, pixels in", "floats, then int8"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
LIMIT = 1.0  # of the time with pixels in to that with preprocessing in front
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def pixels(count: int, size: int, seed: int) -> Tensor:
    """Random photos as uint8 ``[count, 3, size, size]``."""
    photos = nets.photos(count, size, seed)
    return (photos * 50 + 118).round().clamp(0, 255).to(torch.uint8)


def preprocessed(x: Tensor) -> Tensor:
    """What ``ToTensor`` and ``Normalize`` of torchvision compute, in place where they do."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return x.to(torch.float32).div_(255).sub_(mean).div_(std)


def models(net: nn.Module, size: int) -> tuple[octavo.QuantizedModel, octavo.QuantizedModel]:
    """The int8 model of floats and that of pixels."""
    calibration = [preprocessed(pixels(8, size, seed)) for seed in (1, 2)]
    target = octavo.host_target()
    ordinary = octavo.quantize(net, calibration=calibration, target=target, progress=False)
    taking = octavo.quantize(
        net,
        calibration=calibration,
        target=target,
        input_scale=1 / 255,
        input_mean=MEAN,
        input_std=STD,
        progress=False,
    )
    return ordinary, taking


def contenders(
    net: nn.Module, ordinary: nn.Module, taking: nn.Module, x: Tensor
) -> dict[str, Maker]:
    """name -> what makes the call to time."""
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def fp32() -> Call:
        return lambda: last(preprocessed(x).contiguous(memory_format=torch.channels_last))

    return {
        "fp32": fp32,
        FLOATS: lambda: lambda: ordinary(preprocessed(x)),
        PIXELS: lambda: lambda: taking(x),
    }


def agreement(one: nn.Module, other: nn.Module, size: int, images: int) -> float:
    """Percent of the images on which both decide alike."""
    same = 0
    for seed in range(1000, 1000 + images, 16):
        x = pixels(min(16, 1000 + images - seed), size, seed)
        same += int((one(preprocessed(x)).argmax(1) == other(x).argmax(1)).sum())
    return 100 * same / images


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    add_rounds(made, seconds=15, each="a network and batch", slowest=4)
    made.add_argument("--nets", nargs="*", default=["resnet18", "mobilenet_v2"])
    add_images(made)
    made.add_argument("--images", type=int, default=256, help="for agreement")
    options = parsed(made, words)
    report = Report(
        "pixels",
        "From uint8 pixels to logits",
        {"image size": options.size, "target": octavo.host_target(), "images": options.images},
    )
    for name in options.nets:
        net = nets.net_for_images(name, options.size)
        ordinary, taking = models(net, options.size)
        for batch in options.batches:
            for layout, order in LAYOUTS.items():
                x = pixels(batch, options.size, seed=3).contiguous(memory_format=order)
                makers = contenders(net, ordinary, taking, x)
                found = contest(makers, options.rounds, options.seconds, options.slowest)
                for row in found.rows.values():
                    spread = found.ratio(PIXELS, row["contender"])
                    if spread is not None:
                        row |= {f"{PIXELS} / this": spread.median, "quartiles": str(spread)}
                    case = {"network": name, "batch": batch, "pixels": layout}
                    report.rows.append(case | row)
                value = found.median_ratio(PIXELS, FLOATS)
                case_name = f"{name}, batch {batch}, {layout}"
                report.goals.append(Goal(f"{case_name}: time over {FLOATS}", value, LIMIT))
        same = agreement(ordinary, taking, options.size, options.images)
        report.goals.append(Goal(f"{name}: same decisions, %", same, 100.0, at_most=False))
    report.finish(options.out)


if __name__ == "__main__":
    main()
