"""What open sizes cost: one model for all sizes against a capture at that very size.

MiniLM on texts of 1 to 512 tokens and MobileNetV2 on images of 128 to 384 pixels, one sample at a
time, on each runtime. The two of a size take turns; the ratio is the median over
the rounds, with its quartiles. Both are calibrated on the same data, and compared with the float
network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from benchmarks import nets
from benchmarks.contest import Call, Maker, add_rounds, contest
from benchmarks.docstrings import docstrings
from benchmarks.minilm import encoder
from benchmarks.report import Goal, Report, parsed, parser

LENGTHS = (1, 4, 16, 33, 64, 128, 256, 512)  # tokens
SIDES = (128, 160, 224, 288, 384)  # pixels
OPEN, FIXED = "open sizes", "captured at that size"
RUNTIMES = ["torch", "onnxruntime", "openvino"]
LIMIT = 1.1  # of the time of a capture at that size

Inputs = tuple[Tensor, ...]
Network = tuple[nn.Module, Callable[[int], Inputs], Sequence[int]]


def texts() -> Network:
    """The encoder, token ids and mask ``[1, length]`` of a length, and the lengths."""
    net, tokenizer = encoder()
    long = " ".join(docstrings(64))
    ids = tokenizer(long, truncation=True, max_length=LENGTHS[-1], return_tensors="pt")

    def at(length: int) -> Inputs:
        return ids["input_ids"][:, :length], ids["attention_mask"][:, :length]

    return net, at, LENGTHS


def images() -> Network:
    """The network, an image ``[1, 3, side, side]`` of a side, and the sides."""
    net = nets.net_for_images("mobilenet_v2", 224)
    return net, lambda side: (nets.photos(1, side, seed=side),), SIDES


NETWORKS: dict[str, Callable[[], Network]] = {"MiniLM-L6": texts, "MobileNetV2": images}


def measured(name: str, runtimes: Sequence[str], options: Any, report: Report) -> None:
    """A row for each runtime, size and contender, and a goal for each runtime and size."""
    net, at, sizes = NETWORKS[name]()
    sizes = options.sizes or sizes
    mode = "dynamic" if name == "MiniLM-L6" else "static"

    def quantized(size: int, open_sizes: Any) -> Any:
        data = [at(one) for one in (sizes if open_sizes is None else [size])]
        return octavo.quantize(
            net,
            at(size),
            calibration=None if mode == "dynamic" else data,
            mode=mode,
            target=octavo.host_target(),
            open_sizes=open_sizes,
            progress=False,
        )

    whole = quantized(sizes[len(sizes) // 2], None)
    for runtime in runtimes:
        lowered = whole.lower(runtime)
        for size in sizes:
            inputs = at(size)

            def ours(inputs: Inputs = inputs, model: Any = lowered) -> Call:
                return lambda: model(*inputs)

            def fixed(inputs: Inputs = inputs, size: int = size, runtime: str = runtime) -> Call:
                model = quantized(size, {}).lower(runtime)
                return lambda: model(*inputs)

            def floats(inputs: Inputs = inputs) -> Call:
                return lambda: net(*inputs)

            makers: dict[str, Maker] = {"fp32": floats, FIXED: fixed, OPEN: ours}
            found = contest(makers, options.rounds, options.seconds, options.slowest, rest_s=0.01)
            ratio = found.ratio(OPEN, FIXED)
            rows = [dict(row) for row in found.rows.values()]
            if ratio is not None:
                rows[-1] |= {f"time / {FIXED}": ratio.median, "quartiles": str(ratio)}
            report.rows += [{"network": name, "runtime": runtime, "size": size} | r for r in rows]
            value = None if ratio is None else ratio.median
            report.goals.append(Goal(f"{name}, {runtime}, {size}: time over fixed", value, LIMIT))


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    add_rounds(made, seconds=3, each="a size on a runtime", slowest=4)
    made.add_argument("--nets", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    made.add_argument("--runtimes", nargs="*", default=RUNTIMES, choices=RUNTIMES)
    made.add_argument("--sizes", nargs="*", type=int, help="tokens or pixels; all without it")
    options = parsed(made, words)
    report = Report(
        "open_sizes",
        "One model for all sizes, against a capture at each",
        {"target": octavo.host_target(), "torch": torch.__version__},
    )
    for name in options.nets:
        measured(name, options.runtimes, options, report)
    report.finish(options.out)


if __name__ == "__main__":
    main()
