"""A linear layer that waits for its weights: 4096x4096, as in a language model, at one row and 8.

Several layers take turns, so that their weights come from memory and not from a cache. "GB/s" is
the bytes of the stored weights over the median time: it says how near a kernel comes to what the
memory gives, which the rows "plain read" and "plain copy" (bytes read and written) tell. The rows
of the table are compared within rounds, see benchmarks/README.md.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from benchmarks import nets, peers
from benchmarks.contest import Call, Contest, Maker, add_rounds, contest
from benchmarks.report import Goal, Report, parsed, parser

INT8, INT4 = "Octavo weight-only int8", "Octavo weight-only int4, groups of 32"
INT4_WIDE = "Octavo weight-only int4, groups of 128"
READ, COPY = "plain read", "plain copy"
LIMIT = 1.0  # of weight-only's time to bf16's


def contenders(width: int, layers: int, rows: int) -> tuple[dict[str, Maker], dict[str, float]]:
    """name -> what makes the call to time; name -> bytes that it has to read."""
    chance = torch.Generator().manual_seed(nets.SEED)
    linears = [nets.seeded(lambda: nn.Linear(width, width), seed).eval() for seed in range(layers)]
    x = torch.randn(rows, width, generator=chance)
    weights = width * width
    groups = {size: weights / 2 + 2 * 4 * weights / size for size in (32, 128)}

    def by(change: Callable[[nn.Module], Callable[[Tensor], Tensor]], x: Tensor = x) -> Maker:
        def make() -> Call:
            turns = itertools.cycle([change(net) for net in linears])
            return lambda: next(turns)(x)

        return make

    def ours(**how: Any) -> Maker:
        target = octavo.host_target()
        return by(lambda net: octavo.quantize(net, x, target=target, progress=False, **how))

    def four_bits(size: int) -> Maker:
        return ours(qconfig=octavo.weight_only_qconfig(4, group_size=size, symmetric=False))

    def of_memory(function: Callable[[Tensor], Tensor]) -> Maker:
        def make() -> Call:
            turns = itertools.cycle([net.weight.detach() for net in linears])

            def call() -> None:
                function(next(turns))

            return call

        return make

    buffer = torch.empty(width, width)
    makers = {
        "fp32": by(lambda net: net),
        "bf16": by(lambda net: copy.deepcopy(net).bfloat16(), x.bfloat16()),
        "torch.ao dynamic": by(lambda net: peers.dynamic(nn.Sequential(net))),
        "Octavo dynamic": ours(mode="dynamic"),
        INT8: ours(mode="weight_only"),
        INT4: four_bits(32),
        INT4_WIDE: four_bits(128),
        READ: of_memory(torch.sum),
        COPY: of_memory(buffer.copy_),
    }
    read = {
        "fp32": 4 * weights,
        "bf16": 2 * weights,
        "torch.ao dynamic": weights,
        "Octavo dynamic": weights,
        INT8: weights,
        INT4: groups[32],
        INT4_WIDE: groups[128],
        READ: 4 * weights,
        COPY: 8 * weights,
    }
    return makers, read


def rows_of(found: Contest, read: dict[str, float]) -> list[dict[str, Any]]:
    """With the bandwidth and the ratio to bf16."""
    for name, row in found.rows.items():
        if name in found.times:
            row["GB/s"] = read[name] / found.times[name].median_s / 1e9
        spread = found.ratio(name, "bf16")
        if spread is not None:
            row |= {"time / bf16": spread.median, "quartiles": str(spread)}
    return list(found.rows.values())


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    add_rounds(made, seconds=40, each="a number of rows", slowest=1)
    made.add_argument("--width", type=int, default=4096, help="default: %(default)s")
    made.add_argument("--layers", type=int, default=8, help="that take turns; default: %(default)s")
    made.add_argument("--rows", nargs="*", type=int, default=[1, 8])
    options = parsed(made, words)
    report = Report(
        "memory_bound",
        f"A linear layer {options.width}x{options.width} that waits for its weights",
        {"layers in turn": options.layers, "target": octavo.host_target()},
    )
    for rows in options.rows:
        makers, read = contenders(options.width, options.layers, rows)
        found = contest(makers, options.rounds, options.seconds, options.slowest)
        report.rows += [{"rows": rows} | row for row in rows_of(found, read)]
        report.goals += [
            Goal(f"{rows} rows: {name}: time over bf16", found.median_ratio(name, "bf16"), LIMIT)
            for name in (INT8, INT4, INT4_WIDE)
        ]
    report.finish(options.out)


if __name__ == "__main__":
    main()
