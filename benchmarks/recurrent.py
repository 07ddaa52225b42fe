"""An LSTM and a GRU of two layers on sequences of 64 steps, 1, 16 and 32 at a time.

With one sequence each step reads all weights for one row, so that it waits for memory as a language
model does; with many it waits for products. The SQNR is that of the outputs of all steps against
fp32's, with random weights and inputs.
"""

from __future__ import annotations

import copy
import warnings
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from benchmarks import nets, peers
from benchmarks.contest import Call, Maker, add_rounds, contest
from benchmarks.report import Goal, Report, parsed, parser

DYNAMIC, WEIGHT_ONLY, PEER = "Octavo dynamic", "Octavo weight-only int8", "torch.ao dynamic"
LIMITS = {"bf16": 1.0, PEER: 0.5}  # of Octavo's time to theirs; the second is for dynamic layers
KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU}
REST_S = 0.03  # before each call: threads of other libraries spin on after theirs


class Recurrent(nn.Module):
    """float32 ``[N, steps, inputs]`` -> the outputs of all steps ``[N, steps, width]``."""

    def __init__(
        self, inputs: int, width: int, layers: int, kind: type[nn.RNNBase] = nn.LSTM
    ) -> None:
        super().__init__()
        self.layers = kind(inputs, width, layers, batch_first=True)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layers(x)[0]
        return outputs


def contenders(net: nn.Module, x: Tensor) -> dict[str, Maker]:
    """name -> what makes the call to time; the network is left as it is."""

    def theirs(dtype: torch.dtype) -> Maker:
        def make() -> Call:
            model, given = copy.deepcopy(net).to(dtype), x.to(dtype)
            return lambda: model(given)

        return make

    def peer() -> Call:
        model = peers.dynamic(net)
        return lambda: model(x)

    def ours(mode: str) -> Maker:
        def make() -> Call:
            target = octavo.host_target()
            with warnings.catch_warnings():  # what has no kernel stands in the table
                warnings.simplefilter("ignore", octavo.OctavoWarning)
                # Two samples: what capture has seen only once, it might take for a constant.
                example = torch.cat([x, x])
                q = octavo.quantize(net, example, mode=mode, target=target, progress=False)
            return lambda: q(x)

        return make

    return {
        "fp32": theirs(torch.float32),
        "bf16": theirs(torch.bfloat16),
        PEER: peer,
        DYNAMIC: ours("dynamic"),
        WEIGHT_ONLY: ours("weight_only"),
    }


def kernels(net: nn.Module, x: Tensor, mode: str) -> dict[str, Any]:
    """What runs with which kernel, and what has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        q = octavo.quantize(net, x, mode=mode, target=octavo.host_target(), progress=False)
    return {"kernels": dict(q.lowered.kernels), "without a kernel": dict(q.lowered.fallbacks)}


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    add_rounds(made, seconds=20, each="a kind of layer and a batch size", slowest=4)
    made.add_argument("--width", type=int, default=512, help="default: %(default)s")
    made.add_argument("--steps", type=int, default=64, help="default: %(default)s")
    made.add_argument("--batches", nargs="*", type=int, default=[1, 16, 32])
    made.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    options = parsed(made, words)
    inputs = options.width // 2
    report = Report(
        "recurrent",
        f"{' and '.join(options.kinds)}({inputs}, {options.width}), 2 layers, "
        f"{options.steps} steps",
        {"target": octavo.host_target()},
    )
    for kind in options.kinds:
        net = nets.seeded(partial(Recurrent, inputs, options.width, 2, KINDS[kind])).eval()
        for batch in options.batches:
            _measure(report, kind, net, (batch, options.steps, inputs), options)
        example = torch.zeros(2, options.steps, inputs)
        modes = ("dynamic", "weight_only")
        report.details[kind] = {mode: kernels(net, example, mode) for mode in modes}
    report.finish(options.out)


def _measure(
    report: Report, kind: str, net: nn.Module, shape: tuple[int, int, int], options: Namespace
) -> None:
    """One contest, its rows and its goals."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(nets.SEED))
    found = contest(contenders(net, x), options.rounds, options.seconds, options.slowest, REST_S)
    for name, row in found.rows.items():
        for other in LIMITS:
            spread = found.ratio(name, other)
            if spread is not None:
                row |= {f"time / {other}": spread.median, f"quartiles, {other}": str(spread)}
        report.rows.append({"layer": kind, "batch": shape[0]} | row)
    pairs = [(DYNAMIC, "bf16"), (WEIGHT_ONLY, "bf16"), (DYNAMIC, PEER)]
    report.goals += [
        Goal(
            f"{kind}, batch {shape[0]}: {ours}: time over {other}",
            found.median_ratio(ours, other),
            LIMITS[other],
        )
        for ours, other in pairs
    ]


if __name__ == "__main__":
    main()
