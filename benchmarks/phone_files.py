"""Networks of the zoo as files for phones: which are written, run and compute what the oracle does.

Each is quantized for the target `edge` and written as a LiteRT file, and for `executorch` as one of
ExecuTorch. Either is run before it is written, on samples drawn from the ranges of the data:
"equal", or the oracle's signal over the difference in dB and how much is needed, which is how far
the oracle is from itself with some integers a step off (weights are random, so that a network
multiplies such a step). "float": layers that run in float, of LiteRT; of ExecuTorch the share of
multiply-adds that XNNPACK has on integers.

    python -m benchmarks.phone_files --networks unet crnn --docs docs/edge.md
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

import octavo
from benchmarks import reach
from benchmarks.report import Goal, Report, parsed, parser, problem, write_table
from octavo.errors import OctavoError
from octavo.runtimes.lowered import Agreement

import zoo  # isort: skip

NETWORKS = """
    unet autoencoder edsr pointnet yolo_like tcn keyword_spotter deepspeech crnn lstm
    bidirectional_gru transformer_encoder conformer bert distilbert mobilebert vit segformer
    mobilenetv1_100 mobilenet_v2 mobilenet_v3_small efficientnet_lite0 shufflenet_v2_x0_5
    squeezenet1_1 resnet18 mnasnet0_5 efficientnet_b0 regnet_y_400mf googlenet densenet121
    convnext_tiny vit_b_32 lraspp_mobilenet_v3_large
""".split()
LEAST = 20  # networks in both formats


def near(agreement: Agreement | None) -> str:
    """How near a file is to the oracle, in a cell."""
    if agreement is None:
        return "not compared"
    found = "equal" if agreement.sqnr_db == float("inf") else f"{agreement.sqnr_db:.1f} dB"
    return found if agreement.bound_db is None else f"{found} of {agreement.bound_db:.1f}"


def litert(q: octavo.QuantizedModel, path: Path) -> dict[str, str]:
    written = octavo.export_tflite(q, path)
    floats = len(written.in_float)
    return {"agrees": near(written.agreement["xnnpack"]), "float": f"{floats} in float"}


def executorch(q: octavo.QuantizedModel, path: Path) -> dict[str, str]:
    written = octavo.export_executorch(q, path)
    return {"agrees": near(written.agreement), "float": f"{100 * written.share:.1f} % on integers"}


# Format -> its target, and what writes it.
FORMATS: Mapping[str, tuple[str, Callable[[octavo.QuantizedModel, Path], dict[str, str]]]] = {
    "LiteRT": ("edge", litert),
    "ExecuTorch": ("executorch", executorch),
}


def row_of(entry: zoo.Entry, net: nn.Module) -> dict[str, Any]:
    """One network in both formats."""
    row: dict[str, Any] = {"network": entry.name}
    for name, (target, write) in FORMATS.items():
        started = time.perf_counter()
        try:
            q = reach.quantized(entry, net, net, "static", target)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "model")
                said = write(q, path)
                row |= {f"{name} {key}": value for key, value in said.items()}
                row[f"{name} MB"] = round(path.stat().st_size / 1e6, 2)
        except OctavoError as error:
            row[f"{name} error"] = problem(error)
        row[f"{name} s"] = round(time.perf_counter() - started, 1)
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown, as the docs have them."""
    lines = [f"| network | {' | '.join(FORMATS)} |", f"|{' --- |' * (len(FORMATS) + 1)}"]
    lines += [
        f"| {row['network']} | {' | '.join(_cell(row, name) for name in FORMATS)} |" for row in rows
    ]
    return "\n".join(lines)


def _cell(row: Mapping[str, Any], name: str) -> str:
    error = row.get(f"{name} error")
    if error is not None:
        return str(error).partition(": ")[2]
    return f"{row[f'{name} agrees']}, {row[f'{name} float']}, {row[f'{name} MB']:.2f} MB"


def main(words: Sequence[str] | None = None) -> None:
    """Write the files and report."""
    made = parser(__doc__)
    made.add_argument("--networks", nargs="*", default=NETWORKS, choices=list(zoo.BY_NAME))
    made.add_argument("--docs", type=Path, help="file whose table is written anew: docs/edge.md")
    options = parsed(made, words)
    settings = {"seeds of calibration": reach.BATCHES}
    report = Report("phone_files", "The zoo as files for phones", settings)
    report.resume(options.out)
    there = {row["network"] for row in report.rows}
    for name in options.networks:
        if name not in there:
            entry = zoo.BY_NAME[name]
            report.rows.append(row_of(entry, entry.build()))
            report.write(options.out)
    both = sum(not any(f"{name} error" in row for name in FORMATS) for row in report.rows)
    report.goals.append(Goal("networks in both formats", both, LEAST, at_most=False))
    if options.docs:
        write_table(table(report.rows), options.docs)
    report.finish(options.out)


if __name__ == "__main__":
    main()
