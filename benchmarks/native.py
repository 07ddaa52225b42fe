"""Octavo's own kernels, beside what runs the same layers without them, and beside torch's.

LSTM and GRU of two layers on 64 steps, and a linear layer of 4096 x 4096 weights on a few rows. A
plain read of as many bytes as the weights have says how fast memory gives them. SQNR is against
fp32 with random weights, which are unkinder to four bits than trained ones.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import octavo
from benchmarks import nets, peers
from benchmarks.contest import Call, Contest, Maker, add_rounds, contest
from benchmarks.report import Goal, Report, parsed, parser
from octavo.numerics.native import library

OWN, WITHOUT, READ = "Octavo", "Octavo without its own kernels", "plain read"
INT8, INT4 = "int8", "int4, groups of 32"
REST_S = 0.03  # so that nobody's threads are still awake
OF_DYNAMIC, OF_BANDWIDTH = 0.5, 0.7  # of torch.ao's time at most; of a plain read's at least


class Outputs(nn.Module):
    """The outputs of all steps of a recurrent layer."""

    def __init__(self, kind: type[nn.RNNBase], inputs: int, width: int) -> None:
        super().__init__()
        self.layer = kind(inputs, width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x)[0]
        return outputs


@contextmanager
def without_own_kernels() -> Iterator[None]:
    """As an installation that had no C compiler."""
    known = library.library
    library.library = lambda: None  # type: ignore[assignment]
    try:
        yield
    finally:
        library.library = known


def calling(model: Callable[[Tensor], Tensor], x: Tensor) -> Call:
    return lambda: model(x)


def quantized(net: nn.Module, x: Tensor, mode: str, qconfig: octavo.QConfig | None = None) -> Call:
    with warnings.catch_warnings():  # what has no kernel stands in the details
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        q = octavo.quantize(
            net,
            torch.cat([x, x]),
            calibration=[x] if mode == "static" else None,
            mode=mode,
            qconfig=qconfig,
            target=octavo.host_target(),
            progress=False,
        )
    return calling(q, x)


def both(make: Maker, name: str) -> dict[str, Maker]:
    """A contender with and without Octavo's own kernels."""

    def without() -> Call:
        with without_own_kernels():
            return make()

    return {f"{OWN}{name}": make, f"{WITHOUT}{name}": without}


def recurrent(net: nn.Module, x: Tensor) -> dict[str, Maker]:
    return {
        "fp32": lambda: calling(net, x),
        "torch.ao dynamic": lambda: calling(peers.dynamic(net), x),
        **both(lambda: quantized(net, x, "dynamic"), " dynamic"),
        f"{OWN} static": lambda: quantized(net, x, "static"),
    }


def linear(net: nn.Linear, x: Tensor) -> dict[str, Maker]:
    four = octavo.weight_only_qconfig(4, group_size=32)
    half = copy.deepcopy(net).to(torch.bfloat16)

    def read(count: int) -> Call:
        numbers = torch.ones(count // 8, dtype=torch.int64)

        def call() -> None:
            numbers.sum()

        return call

    weights = net.weight.numel()
    return {
        "fp32": lambda: calling(net, x),
        "bf16": lambda: calling(half, x.to(torch.bfloat16)),
        "torch int4": lambda: torch_int4(net, x),
        **both(lambda: quantized(net, x, "weight_only", four), f" {INT4}"),
        f"{OWN} {INT8}": lambda: quantized(net, x, "weight_only"),
        f"{READ}, {INT4}": lambda: read(weights // 2 + 5 * weights // 32),  # scale and zero point
        f"{READ}, {INT8}": lambda: read(weights),
    }


def torch_int4(net: nn.Linear, x: Tensor) -> Call:
    """torch's product for weights of four bits, as torchao calls it."""
    groups = net.weight.detach().reshape(len(net.weight), -1, 32)
    scale = groups.abs().amax(2, keepdim=True) / 7
    integers = (groups / scale).round().clamp(-8, 7).reshape(net.weight.shape) + 8
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers.to(torch.int32), 1)
    scale = scale.squeeze(2)
    parameters = torch.stack([scale, torch.zeros_like(scale)], 2).transpose(0, 1)
    parameters = parameters.to(torch.bfloat16).contiguous()
    product, given = torch.ops.aten._weight_int4pack_mm_for_cpu, x.to(torch.bfloat16)
    return lambda: product(given, packed, 32, parameters)


def goals(case: str, found: Contest) -> Iterator[Goal]:
    if "torch.ao dynamic" in found.rows:
        value = found.median_ratio(f"{OWN} dynamic", "torch.ao dynamic")
        yield Goal(f"{case}: time over torch.ao dynamic's", value, OF_DYNAMIC)
    elif case.endswith(" 1 rows"):
        for bits in (INT4, INT8):
            value = found.median_ratio(f"{READ}, {bits}", f"{OWN} {bits}")
            name = f"{case}, {bits}: share of a plain read's bandwidth"
            yield Goal(name, value, OF_BANDWIDTH, at_most=False)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    add_rounds(made, seconds=20, each="a case", slowest=4)
    made.add_argument("--width", type=int, default=512, help="of states; default: %(default)s")
    made.add_argument("--features", type=int, default=4096, help="default: %(default)s")
    made.add_argument("--steps", type=int, default=64, help="default: %(default)s")
    made.add_argument("--batches", nargs="*", type=int, default=[1, 16, 32])
    made.add_argument("--rows", nargs="*", type=int, default=[1, 4, 8])
    options = parsed(made, words)
    instructions = library.instruction_set() or "not compiled"
    report = Report("native", "Octavo's own kernels", {"instructions": instructions})
    chance = torch.Generator().manual_seed(nets.SEED)
    inputs, features = options.width // 2, options.features
    cases: dict[str, dict[str, Maker]] = {}
    for kind in (nn.LSTM, nn.GRU):
        net = nets.seeded(lambda kind=kind: Outputs(kind, inputs, options.width)).eval()
        for batch in options.batches:
            x = torch.randn(batch, options.steps, inputs, generator=chance)
            name = f"{kind.__name__}({inputs}, {options.width}, 2), {options.steps} steps"
            cases[f"{name}, batch {batch}"] = recurrent(net, x)
    net = nets.seeded(lambda: nn.Linear(features, features)).eval()
    for rows in options.rows:
        x = torch.randn(rows, features, generator=chance)
        cases[f"Linear({features}, {features}), {rows} rows"] = linear(net, x)
    for case, makers in cases.items():
        found = contest(makers, options.rounds, options.seconds, options.slowest, REST_S)
        for name, row in found.rows.items():
            spread = found.ratio(name, "fp32")
            if spread is not None:
                row |= {"time / fp32": spread.median, "quartiles": str(spread)}
            report.rows.append({"case": case} | row)
        report.goals += goals(case, found)
    report.finish(options.out)


if __name__ == "__main__":
    main()
