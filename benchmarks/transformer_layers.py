"""The layers of transformers on Octavo's own kernels, beside torch's for the same work.

Attention of integers beside torch's of floats, which gets its floats for nothing; a norm with the
sum before it and the rounding behind it; and dynamic linear layers beside torch.ao's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

import octavo
from benchmarks import nets, peers
from benchmarks.contest import Maker, add_rounds, contest
from benchmarks.native import OWN, REST_S
from benchmarks.report import Goal, Report, parsed, parser
from octavo.numerics import octavo_operators
from octavo.numerics.native import library
from octavo.runtimes.integers import Integers
from octavo.runtimes.native.attention import attention_of_integers
from octavo.runtimes.native.normalization import normalize
from octavo.runtimes.torch import integer_kernels

TORCH, ORACLE, PEER = "torch, float", "the oracle's operators", "torch.ao dynamic"
HEADS = 12
LENGTHS, CHANNELS = (32, 128, 197, 512), (32, 64, 128)
ROWS, WEIGHTS = (8, 32, 128, 512), ((384, 1536), (1536, 384), (768, 3072))
SLOWEST = 1.0  # of torch's time
FROM_TOKENS, FROM_ROWS = 128, 8  # where Octavo's own has to be the quicker
SCALES, ZERO_POINTS, OUT = [0.02, 0.02, 0.01], [127, 130, 120], [0.01, 100, 0, 255]
Cases = Iterator[tuple[str, str, bool, dict[str, Maker]]]  # case, rival, whether a goal, contenders


def calling(function: Callable[[], object]) -> Maker:
    """What it returns is left out: integers and floats are not compared here, but in the tests."""

    def call() -> None:
        function()

    return lambda: call


def attention() -> Cases:
    for length in LENGTHS:
        for channels in CHANNELS:
            shape = (1, length, HEADS, channels)
            q, k, v = (
                torch.randint(0, 256, shape, dtype=torch.uint8).transpose(1, 2) for _ in "qkv"
            )
            floats = [
                octavo_operators.dequantize(t, scale, zero_point)
                for t, scale, zero_point in zip((q, k, v), SCALES, ZERO_POINTS, strict=True)
            ]
            how = (None, False, None, False, 255)
            own = partial(attention_of_integers, q, k, v, *how, SCALES, ZERO_POINTS, OUT)
            yield (
                f"attention, {length} tokens, {HEADS} heads of {channels}",
                TORCH,
                length >= FROM_TOKENS,
                {
                    TORCH: calling(partial(F.scaled_dot_product_attention, *floats)),
                    ORACLE: calling(partial(octavo_operators.attention, *floats, *how)),
                    OWN: calling(own),
                },
            )


def norms() -> Cases:
    rounded = integer_kernels.quantize(Integers(0.01, 100, 0, 255, torch.uint8))
    for rows, columns in ((128, 384), (197, 768), (1, 768)):
        x, addend = torch.randn(rows, columns), torch.randn(rows, columns)
        weight, bias = torch.randn(columns), torch.randn(columns)
        own = partial(
            normalize, x, addend, weight, bias, "layer_norm", columns, 1e-6, [], True, OUT
        )

        def of_torch(
            x: torch.Tensor = x,
            addend: torch.Tensor = addend,
            weight: torch.Tensor = weight,
            bias: torch.Tensor = bias,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            y = F.layer_norm(x + addend, x.shape[1:], weight, bias, 1e-6)
            return y, rounded(y)

        makers = {TORCH: calling(of_torch), OWN: calling(own)}
        yield f"sum, layer norm and rounding, {rows} x {columns}", TORCH, rows > 1, makers


def lowered(net: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """A layer as it is called within a model, whose own checks come once for all its layers."""
    q = octavo.quantize(net, x, mode="dynamic", target=octavo.host_target(), progress=False)
    run = q.lowered.run
    return lambda: run(x)[0]


def linear_layers() -> Cases:
    for inputs, outputs in WEIGHTS:
        net = nets.seeded(lambda i=inputs, o=outputs: nn.Sequential(nn.Linear(i, o))).eval()
        for rows in ROWS:
            x = torch.randn(rows, inputs)
            yield (
                f"dynamic Linear({inputs}, {outputs}), {rows} rows",
                PEER,
                rows >= FROM_ROWS,
                {
                    TORCH: lambda net=net, x=x: partial(net, x),
                    PEER: lambda net=net, x=x: partial(peers.dynamic(net), x),
                    OWN: lambda net=net, x=x: lowered(net, x),
                },
            )


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    add_rounds(made, seconds=6, each="a case", slowest=4)
    made.add_argument("--only", help="cases whose name begins so")
    options = parsed(made, words)
    instructions = library.instruction_set() or "not compiled"
    report = Report("transformer_layers", "Layers of transformers", {"instructions": instructions})
    torch.manual_seed(nets.SEED)
    with torch.no_grad():
        for cases in (attention(), norms(), linear_layers()):
            for case, rival, is_goal, makers in cases:
                if options.only and not case.startswith(options.only):
                    continue
                found = contest(makers, options.rounds, options.seconds, options.slowest, REST_S)
                for name, row in found.rows.items():
                    spread = found.ratio(name, rival)
                    if spread is not None:
                        row |= {"time / rival": spread.median, "quartiles": str(spread)}
                    report.rows.append({"case": case} | row)
                if is_goal:
                    value = found.median_ratio(OWN, rival)
                    report.goals.append(Goal(f"{case}: time over {rival}", value, SLOWEST))
    report.finish(options.out)


if __name__ == "__main__":
    main()
