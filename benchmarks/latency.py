"""How fast: ResNet-18, ResNet-50 and MobileNetV2 at 224x224, against eager torch and torch.ao FX.

All contenders of a network take turns in one process; speed is compared within a round, and the
ratio is the median over the rounds, with its quartiles. Every contender's SQNR against fp32 stands
beside its time, since int8 that saturates (FX onednn on a CPU without VNNI) is fast and wrong.
Everyone gets the same image tensor in channels-last order; rows named "contiguous" get what a
DataLoader gives. The weights are random, the batch statistics are the network's own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from benchmarks import nets
from benchmarks.contest import Call, Maker, add_images, add_rounds, contest
from benchmarks.peers import fx
from benchmarks.report import Goal, Report, parsed, parser

OCTAVO = "Octavo"
RIVAL = "FX onednn"
LIMIT = 1.0  # of Octavo's median to the rival's


def contenders(net: nn.Module, x: Tensor, calibration: list[Tensor]) -> dict[str, Maker]:
    """name -> what makes the call to time; the network is left as it is."""
    last = x.contiguous(memory_format=torch.channels_last)

    def eager(dtype: torch.dtype, layout: torch.memory_format) -> Maker:
        def make() -> Call:
            model = copy.deepcopy(net).to(dtype)
            model.to(memory_format=layout)  # type: ignore[call-overload]
            given = x.to(dtype).contiguous(memory_format=layout)
            return lambda: model(given)

        return make

    def ours(given: Tensor) -> Maker:
        def make() -> Call:
            target = octavo.host_target()
            q = octavo.quantize(net, calibration=calibration, target=target, progress=False)
            return lambda: q(given)

        return make

    def theirs(engine: str) -> Maker:
        def make() -> Call:
            model = fx(net, calibration, engine)
            return lambda: model(last)

        return make

    return {
        "fp32, contiguous": eager(torch.float32, torch.contiguous_format),
        "fp32": eager(torch.float32, torch.channels_last),
        "bf16": eager(torch.bfloat16, torch.channels_last),
        RIVAL: theirs("onednn"),
        "FX x86": theirs("x86"),
        OCTAVO: ours(last),
        f"{OCTAVO}, contiguous": ours(x),
    }


def measured(
    makers: dict[str, Maker], rounds: int | None, seconds: float, slowest: float
) -> list[dict[str, Any]]:
    """A row for each contender: what it does to the logits, its times, and Octavo's over them."""
    found = contest(makers, rounds, seconds, slowest)
    for name, row in found.rows.items():
        spread = found.ratio(OCTAVO, name)
        if spread is not None:
            row |= {f"{OCTAVO}'s time / this": spread.median, "quartiles": str(spread)}
    return list(found.rows.values())


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    add_rounds(made, seconds=25, each="a network and batch", slowest=4)
    made.add_argument("--nets", nargs="*", default=list(nets.FOR_IMAGES), choices=nets.FOR_IMAGES)
    add_images(made)
    options = parsed(made, words)
    report = Report(
        "latency",
        "Latency against eager torch and torch.ao FX, interleaved",
        {"image size": options.size, "target": octavo.host_target()},
    )
    for name in options.nets:
        net = nets.net_for_images(name, options.size)
        calibration = [nets.photos(8, options.size, seed=index) for index in (1, 2)]
        for batch in options.batches:
            x = nets.photos(batch, options.size, seed=3)
            rows = measured(
                contenders(net, x, calibration), options.rounds, options.seconds, options.slowest
            )
            report.rows += [{"network": name, "batch": batch} | row for row in rows]
            value = next(r.get(f"{OCTAVO}'s time / this") for r in rows if r["contender"] == RIVAL)
            report.goals.append(Goal(f"{name}, batch {batch}: time over {RIVAL}", value, LIMIT))
    report.finish(options.out)


if __name__ == "__main__":
    main()
