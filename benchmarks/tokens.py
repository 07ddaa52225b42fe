"""What a range for each row costs in dynamic layers, against one range for all rows.

With a range for each row no sample's result depends on its neighbours. A small network of linear
layers and two layers of an encoder of MiniLM's size, from one row to 128, with random weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import octavo
from benchmarks import nets
from benchmarks.contest import Call, Maker, contest
from benchmarks.report import Goal, Report, parsed, parser

PER_TENSOR, PER_TOKEN = "per tensor", "per token"
BY_DEFAULT = ("torch", "inductor", "openvino")  # target "onnxruntime" has it per tensor
LIMIT = 1.1  # of the time per token to that per tensor


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(384, 12, 1536, activation="gelu", batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


# name -> the network, and the shape of its input for a number of rows
NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[int, ...]]]] = {
    "MLP 256-512-512-10": (_mlp, lambda rows: (rows, 256)),
    "encoder 2 x 384": (_encoder, lambda rows: (1, rows, 384)),
}


def contenders(net: nn.Module, x: Tensor, runtime: str) -> dict[str, Maker]:
    """fp32, and the same network with both kinds of ranges."""

    def ours(per_token: bool) -> Maker:
        def make() -> Call:
            target = octavo.host_target()
            qconfig = octavo.dynamic_qconfig(target, per_token=per_token)
            with warnings.catch_warnings():  # what has no kernel there is no matter here
                warnings.simplefilter("ignore", octavo.OctavoWarning)
                q = octavo.quantize(
                    net, torch.cat([x, x]), qconfig=qconfig, target=target, progress=False
                )
                q = q.lower(runtime)
            return lambda: q(x)

        return make

    def theirs() -> Call:
        return lambda: net(x)

    return {"fp32": theirs, PER_TENSOR: ours(False), PER_TOKEN: ours(True)}


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, help="what fits into --seconds without it")
    made.add_argument("--seconds", type=float, default=10, help="of rounds for a size")
    made.add_argument("--runtimes", nargs="*", default=["torch", "onnxruntime", "openvino"])
    made.add_argument("--rows", nargs="*", type=int, default=[1, 4, 16, 64, 128])
    options = parsed(made, words)
    report = Report("tokens", "Dynamic layers per tensor and per token", {})
    for name, (make, shape) in NETS.items():
        net = nets.seeded(make).eval()
        for runtime in options.runtimes:
            for rows in options.rows:
                x = torch.randn(shape(rows), generator=torch.Generator().manual_seed(nets.SEED))
                found = contest(
                    contenders(net, x, runtime), options.rounds, options.seconds, slowest=4
                )
                for row in found.rows.values():
                    report.rows.append({"network": name, "runtime": runtime, "rows": rows} | row)
                spread = found.ratio(PER_TOKEN, PER_TENSOR)
                if spread is None:
                    continue
                report.rows[-1] |= {"time / per tensor": spread.median, "quartiles": str(spread)}
                if runtime in BY_DEFAULT:
                    what = f"{name}, {runtime}, {rows} rows: time per token over per tensor"
                    report.goals.append(Goal(what, spread.median, LIMIT))
    report.finish(options.out)


if __name__ == "__main__":
    main()
