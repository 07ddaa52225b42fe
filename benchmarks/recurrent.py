"""An LSTM of two layers on a sequence of 64 steps, one sequence at a time.

Each step reads all weights for one row, so that it waits for memory as a language model does. The
SQNR is that of the outputs of all steps against fp32's, with random weights and inputs.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from benchmarks import nets, peers
from benchmarks.contest import Call, Maker, add_rounds, contest
from benchmarks.report import Goal, Report, parsed, parser

DYNAMIC, WEIGHT_ONLY = "Octavo dynamic", "Octavo weight-only int8"
LIMIT = 1.0  # of Octavo's time to bf16's


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
        "torch.ao dynamic": peer,
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
    add_rounds(made, seconds=60, each="a batch size", slowest=4)
    made.add_argument("--width", type=int, default=512, help="default: %(default)s")
    made.add_argument("--steps", type=int, default=64, help="default: %(default)s")
    made.add_argument("--batches", nargs="*", type=int, default=[1])
    options = parsed(made, words)
    inputs = options.width // 2
    net = nets.seeded(lambda: Recurrent(inputs, options.width, 2)).eval()
    report = Report(
        "recurrent",
        f"LSTM({inputs}, {options.width}), 2 layers, {options.steps} steps",
        {"target": octavo.host_target()},
    )
    for batch in options.batches:
        chance = torch.Generator().manual_seed(nets.SEED)
        x = torch.randn(batch, options.steps, inputs, generator=chance)
        found = contest(contenders(net, x), options.rounds, options.seconds, options.slowest)
        for name, row in found.rows.items():
            spread = found.ratio(name, "bf16")
            if spread is not None:
                row |= {"time / bf16": spread.median, "quartiles": str(spread)}
            report.rows.append({"batch": batch} | row)
        report.goals += [
            Goal(f"batch {batch}: {name}: time over bf16", found.median_ratio(name, "bf16"), LIMIT)
            for name in (DYNAMIC, WEIGHT_ONLY)
        ]
    example = torch.zeros(2, options.steps, inputs)
    report.details = {mode: kernels(net, example, mode) for mode in ("dynamic", "weight_only")}
    report.finish(options.out)


if __name__ == "__main__":
    main()
