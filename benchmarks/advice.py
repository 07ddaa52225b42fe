"""Where int8, bfloat16 or float wins: one layer at a time, by kind and size, on this kind of CPU.

Each layer reads floats and gives floats, on the `torch` runtime: Octavo's int8 beside torch's
kernels for bfloat16, which Octavo's bfloat16 runs too, and for float32. In a model int8 layers
hand integers to each other, so that they take less there. Times that CPUs act out are none of
theirs; the SQNR is.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octavo
from benchmarks import nets
from benchmarks.contenders import bound, channels_last, copied
from benchmarks.contest import Maker, add_rounds, contest
from benchmarks.recurrent import Recurrent
from benchmarks.report import Report, parsed, parser

FP32, BF16, INT8 = "fp32", "bf16", "int8"
REST_S = 0.005
AS_FAST = 0.95  # of the more precise one's time, from which on the less precise is advised


class Attention(nn.Module):
    """Self-attention between its projections.

    Args:
        width: of a token.
        heads: of how many parts.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, tokens, width]`` of the same."""
        parts = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        result: Tensor = self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        return result


@dataclass(frozen=True)
class Case:
    """A layer.

    Attributes:
        kind: of layer, with its sizes.
        call: what is one of, in words.
        net: the layer.
        x: what it reads.
        mode: of int8.
    """

    kind: str
    call: str
    net: nn.Module
    x: Tensor
    mode: str = "static"


def cases() -> list[Case]:
    """What advice is given about."""
    made = [
        Case(
            f"linear {i}x{o}", f"{rows} rows", nn.Sequential(nn.Linear(i, o)), torch.randn(rows, i)
        )
        for i, o in ((384, 1536), (1024, 1024))
        for rows in (1, 16, 128)
    ]
    made += [
        Case(f"convolution {c}x{c}x{k}x{k}", f"{side}x{side}", _convolution(c, k), _image(c, side))
        for c, k, side in ((64, 3, 56), (512, 3, 7), (96, 1, 28), (16, 1, 112))
    ]
    made += [
        Case(f"depthwise {c}x3x3", f"{side}x{side}", _convolution(c, 3, c), _image(c, side))
        for c, side in ((32, 112), (192, 28), (960, 7))
    ]
    made += [
        Case("attention 384, 12 heads", f"{n} tokens", Attention(384, 12), torch.randn(1, n, 384))
        for n in (128, 256, 512, 1024)
    ]
    made += [
        Case(f"{name} 2x512", f"64 steps, batch {b}", net, torch.randn(b, 64, 256), "dynamic")
        for name, kind in (("LSTM", nn.LSTM), ("GRU", nn.GRU))
        for net in [Recurrent(256, 512, 2, kind)]
        for b in (1, 16)
    ]
    return made


def _convolution(channels: int, kernel: int, groups: int = 1) -> nn.Module:
    layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups)
    return nn.Sequential(layer, nn.ReLU())


def _image(channels: int, side: int) -> Tensor:
    return torch.randn(1, channels, side, side)


def makers(case: Case) -> dict[str, Maker]:
    """The layer in each precision."""
    x = channels_last(case.x)
    half = copied(copy.deepcopy(case.net)).bfloat16()

    def in_int8() -> Any:
        data = None if case.mode == "dynamic" else [case.x]
        q = octavo.quantize(
            case.net,
            case.x,
            calibration=data,
            mode=case.mode,
            target=octavo.host_target(),
            progress=False,
        )
        run = q.lowered.run
        return lambda: run(x)[0]

    return {
        FP32: lambda: bound(copied(case.net), (x,)),
        BF16: lambda: bound(lambda given: half(given.bfloat16()).float(), (x,)),
        INT8: in_int8,
    }


def advised(times: dict[str, float | None]) -> str:
    """The most precise of those that nothing less precise beats by more than the noise."""
    best, least = FP32, times[FP32]
    for name in (BF16, INT8):
        taken = times[name]
        if taken is not None and (least is None or taken < AS_FAST * least):
            best, least = name, taken
    return best


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    add_rounds(made, seconds=1.0, each="a layer", slowest=2)
    made.add_argument("--only", help="layers whose kind begins so")
    options = parsed(made, words)
    report = Report(
        "advice", "Milliseconds of a layer, by precision", {"target": octavo.host_target()}
    )
    torch.manual_seed(nets.SEED)
    with torch.no_grad():
        for case in cases():
            if options.only and not case.kind.startswith(options.only):
                continue
            case.net.eval()
            found = contest(makers(case), options.rounds, options.seconds, options.slowest, REST_S)
            times = {name: row.get("median ms") for name, row in found.rows.items()}
            noise = {f"{n}: dB": found.rows[n].get("SQNR dB") for n in (BF16, INT8)}
            row = {"layer": case.kind, "call": case.call, **times, **noise}
            report.rows.append(row | {"fastest": advised(times)})
    report.finish(options.out)


if __name__ == "__main__":
    main()
