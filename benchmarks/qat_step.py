"""What a step of quantization-aware training costs: forward, loss, backward, optimizer.

ResNet-18 on 64x64 images, 32 a batch. Observers are on in every contender, as they are at the start
of a training; Octavo also with learned scales, and with batch norms and ranges frozen, as at its
end.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

import octavo
from benchmarks import nets, peers
from benchmarks.contest import Call, Maker, contest
from benchmarks.report import Goal, Report, parsed, parser

SIZE, BATCH, CLASSES = 64, 32, 1000
FLOAT, FX = "float", "torch.ao prepare_qat_fx"
OCTAVO = "Octavo"
LIMIT = 2.0


def step_of(net: nn.Module, images: Tensor, labels: Tensor) -> Call:
    """One step of training as a call."""
    optimizer = torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9)

    def step() -> None:
        with torch.enable_grad():
            loss = functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return step


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, help="what fits into --seconds without it")
    made.add_argument("--seconds", type=float, default=120, help="of rounds")
    options = parsed(made, words)
    net = nets.seeded(nets.FOR_IMAGES["resnet18"])
    images = nets.photos(BATCH, SIZE)
    labels = torch.arange(BATCH) % CLASSES

    def prepared(*, learned: bool = False, frozen: bool = False) -> Call:
        with torch.enable_grad():
            qat = octavo.prepare_qat(
                net,
                images,
                target=octavo.host_target(),
                calibration=[images] if learned else None,
                learned_scales=learned,
                progress=False,
            )
        if frozen:
            qat(images)
            qat.observe(False).freeze_batch_norms()
        return step_of(qat, images, labels)

    makers: dict[str, Maker] = {
        FLOAT: lambda: step_of(copy.deepcopy(net).train(), images, labels),
        FX: lambda: step_of(peers.fx_qat(net, images), images, labels),
        OCTAVO: prepared,
        f"{OCTAVO}, learned scales": lambda: prepared(learned=True),
        f"{OCTAVO}, ranges and norms frozen": lambda: prepared(frozen=True),
    }
    found = contest(makers, options.rounds, options.seconds, slowest=60)
    report = Report(
        "qat_step",
        "A step of quantization-aware training",
        {"network": "ResNet-18", "images": f"{SIZE}x{SIZE}", "batch": BATCH},
    )
    for name, row in found.rows.items():
        for other in (FLOAT, FX):
            spread = found.ratio(name, other)
            row[f"time / {other}"] = None if spread is None else str(spread)
        report.rows.append(row)
    report.goals = [
        Goal(f"{OCTAVO}: time over {FLOAT}", found.median_ratio(OCTAVO, FLOAT), LIMIT),
        Goal(f"{OCTAVO}: time over {FX}", found.median_ratio(OCTAVO, FX), 1.0),
    ]
    report.finish(options.out)


if __name__ == "__main__":
    main()
