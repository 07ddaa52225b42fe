"""What calibration costs beyond the float model itself: 100 batches of both, in turns.

Calibration is counted whole: making the instrumented graph, observing the batches, computing the
parameters. The float forward is the user's own model in evaluation mode, without gradients. Beside
it one update of an observer stands over torch's own `aminmax` of the same tensor.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from benchmarks import nets
from benchmarks.ratios import Spread
from benchmarks.report import Goal, Report, parsed, parser
from octavo.numerics.observers import Observer

# Observer of activations -> what calibrating with it may take, over the float forward.
LIMITS: dict[str, tuple[Observer, float]] = {
    "min-max": (octavo.MinMax(), 1.2),
    "histogram": (octavo.Histogram(), 1.5),
}


@dataclass(frozen=True)
class Case:
    net: str
    size: int
    batch: int

    def __str__(self) -> str:
        return f"{self.net}, {self.size}x{self.size}, batch {self.batch}"


CASES = (
    Case("resnet18", 64, 32),
    Case("resnet18", 224, 8),
    Case("mobilenet_v2", 224, 8),
)


def row_of(case: Case, observer: str, batches: int, chunk: int) -> dict[str, Any]:
    """Both ways through the same batches, chunk by chunk, who begins alternating."""
    net = nets.net_for_images(case.net, case.size)
    images = [nets.photos(case.batch, case.size, seed=index) for index in range(chunk)]
    graph = octavo.capture(net, images[0])
    target = octavo.host_target()
    qconfig = octavo.static_qconfig(target, observer=LIMITS[observer][0])
    mapping = octavo.QConfigMapping().set_global(qconfig)
    decided = octavo.plan(graph, mapping, target=target)
    octavo.calibrate(graph, decided, images[:2], progress=False)  # warms both up
    _forward(net, images[:2])

    started = time.perf_counter()
    calibration = octavo.Calibration(graph, decided)
    around = time.perf_counter() - started
    observing: list[float] = []
    forward: list[float] = []
    for index in range(batches // chunk):
        for which in (0, 1) if index % 2 else (1, 0):
            started = time.perf_counter()
            if which:
                for batch in images:
                    calibration.observe([batch])
            else:
                _forward(net, images)
            (observing if which else forward).append(time.perf_counter() - started)
    started = time.perf_counter()
    calibration.qparams()
    around += time.perf_counter() - started
    pairs = zip(observing, forward, strict=True)
    return {
        "case": str(case),
        "observer": observer,
        "batches": batches,
        "forward s": sum(forward),
        "calibration s": sum(observing) + around,
        "ratio": (sum(observing) + around) / sum(forward),
        "chunks, quartiles": str(Spread.of([ours / theirs for ours, theirs in pairs])),
    }


def update_over_aminmax(observer: Observer, rounds: int = 21) -> Spread:
    """Of images as a first layer makes them: float32 ``[8, 64, 112, 112]``, channels last."""
    x = torch.randn(8, 64, 112, 112).relu().contiguous(memory_format=torch.channels_last)
    state = observer.update(None, x, None)
    ratios = []
    for _ in range(rounds):
        started = time.perf_counter()
        torch.aminmax(x)
        between = time.perf_counter()
        state = observer.update(state, x, None)
        ratios.append((time.perf_counter() - between) / (between - started))
    return Spread.of(ratios)


def _forward(net: nn.Module, images: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for batch in images:
            net(batch)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=10, help="chunks; default: %(default)s")
    made.add_argument("--batches", type=int, default=100, help="in all; default: %(default)s")
    options = parsed(made, words)
    report = Report(
        "calibration",
        "Calibrating against the plain float forward of the same batches",
        {"rounds": options.rounds, "target": octavo.host_target()},
    )
    chunk = max(2, options.batches // options.rounds)
    for name, (observer, limit) in LIMITS.items():
        report.notes.append(f"{name}: an update over aminmax: {update_over_aminmax(observer)}")
        for case in CASES:
            row = row_of(case, name, options.batches, chunk)
            report.rows.append(row)
            report.goals.append(Goal(f"{case}, {name}: time over the forward", row["ratio"], limit))
    report.finish(options.out)


if __name__ == "__main__":
    main()
