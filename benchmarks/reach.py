"""What is captured and quantized, over the whole zoo of the tests: static, dynamic, weight-only.

For each network and mode: the share of all multiply-adds that runs on integer weights, the SQNR of
the outputs against the float network at two batch sizes and, where it takes any, two lengths or
image sizes, and what stayed float that has multiply-adds. Weights are random, so the SQNR is that
of a network that nothing has made robust: deep networks without shortcuts or with many branches
come out far lower than trained ones do. Exact arithmetic (`reference`) for the target of this CPU;
the columns with "torch" say how the `torch` runtime ran it here. Of networks that no graph holds
whole, what runs in Python has no multiply-adds that are counted.

`python -m benchmarks.reach --docs docs/reach.md` writes the table of the docs; `--resume FILE`
goes on where an earlier run with the same file was interrupted.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import octavo
from benchmarks.report import Goal, Report, parsed, parser, problem, write_table
from octavo.display import percent
from octavo.graph.capture.torch_export import as_records
from octavo.graph.graph import Graph
from octavo.measuring.metrics import Likeness

from benchmarks import nets  # isort: skip  # noqa: F401  (nets finds the zoo)
import zoo  # isort: skip

CAPTURED, CALIBRATED, RUN = 2, 4, (1, 3)  # batch sizes
BATCHES = 4
# Layers that a mode quantizes where a rule asks: what is only made of these takes that rule.
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose2d")


def operators_of(model: nn.Module) -> set[str]:
    """The operators of a network that no graph holds whole, as far as a rule may ask for them."""
    kinds = {nn.Conv2d: "conv2d", nn.Linear: "linear", nn.Embedding: "embedding"}
    return {kinds[type(module)] for module in model.modules() if type(module) in kinds}


def rule_for(graph: Graph | nn.Module, mode: str, target: str) -> octavo.QConfigMapping | None:
    """Convolutions, where there is nothing else: they are static unless a rule asks."""
    is_graph = isinstance(graph, Graph)
    ops = {node.short_op for node in graph.nodes} if is_graph else operators_of(graph)
    if mode == "static" or ops & {"linear", "lstm", "gru", "embedding"}:
        return None
    qconfig = octavo.dynamic_qconfig(target) if mode == "dynamic" else octavo.weight_only_qconfig()
    mapping = octavo.QConfigMapping()
    for op in ops & set(_CONVOLUTIONS):
        mapping.set_object_type(op, qconfig)
    return mapping


def quantized(
    entry: zoo.Entry, model: nn.Module, graph: Graph | nn.Module, mode: str, target: str
) -> Any:
    """The network in one call, with a rule where the mode needs one."""
    data = [pair(call(entry, CALIBRATED, seed)) for seed in range(BATCHES)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        return octavo.quantize(
            model,
            calibration=data,
            mode=mode,
            qconfig=rule_for(graph, mode, target),
            target=target,
            progress=False,
        )


def pair(arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """A call's arguments as a batch of data: positional or keyword ones."""
    args, kwargs = arguments
    return kwargs or args


def call(
    entry: zoo.Entry, batch: int, seed: int, another: bool = False
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    example = entry.another if another and entry.another else entry.example
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return zoo.arguments(example(batch))


def calls(entry: zoo.Entry) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """At two batch sizes, and at another length or image size where the network takes any."""
    return [call(entry, batch, 100 + batch, size) for size in (False, True) for batch in RUN]


def floats(result: object) -> Tensor:
    """All float values of a result, in one row."""
    leaves = pytree.tree_leaves(as_records(result))
    tensors = [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]
    return torch.cat([t.detach().flatten() for t in tensors])


def drawn(network: nn.Module, args: Any, kwargs: Any) -> Tensor:
    """The float values of a call, with the noise that some networks draw always the same."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return floats(network(*args, **kwargs))


def sqnr_db(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    likeness = Likeness()
    for one, other in zip(expected, found, strict=True):
        likeness.update(one[None], other[None])
    return likeness.sqnr_db


def row_of(entry: zoo.Entry, modes: Sequence[str]) -> dict[str, Any]:
    """One network, quantized in each mode in one call, and run at two batch sizes."""
    in_parts = entry in zoo.IN_PARTS
    scope = "regions" if in_parts else "model"
    row: dict[str, Any] = {"network": entry.name, "family": entry.family, "scope": scope}
    try:
        model = entry.build()
        graph = model if in_parts else octavo.capture(model, *call(entry, CAPTURED, 0))
    except Exception as error:  # noqa: BLE001  (whatever fails is this network's result)
        return row | {"error": problem(error)}
    runs = calls(entry)
    with torch.no_grad():
        expected = [drawn(model, args, kwargs) for args, kwargs in runs]
    for mode in modes:
        try:
            row |= _mode_columns(entry, model, graph, mode, runs, expected)
        except Exception as error:  # noqa: BLE001
            row["error"] = f"{mode}: {problem(error)}"
    return row


def _mode_columns(
    entry: zoo.Entry,
    model: nn.Module,
    graph: Graph | nn.Module,
    mode: str,
    runs: Sequence[tuple[tuple[Any, ...], dict[str, Any]]],
    expected: Sequence[Tensor],
) -> dict[str, Any]:
    here = quantized(entry, model, graph, mode, octavo.host_target())
    exact = octavo.lower(here, "reference")
    columns: dict[str, Any] = {}
    for name, q in (("", exact), ("torch ", here)):
        found = [drawn(q, args, kwargs) for args, kwargs in runs]
        share = 100 * (octavo.summary(q).coverage.share or 0.0)
        columns[f"{mode} {name}share %"] = float(f"{share:.4g}")
        columns[f"{mode} {name}dB"] = round(sqnr_db(expected, found), 1)
    if not all(map(math.isfinite, columns.values())):
        raise ValueError(f"a result is not finite: {columns}")
    if mode == "static":
        told = octavo.summary(exact)
        in_python = () if isinstance(graph, Graph) else told.rest.floats
        columns["costs in float"] = _counted(
            layer.op
            for layer in told.coverage.floats
            if layer.multiply_adds or (layer.bytes and layer in in_python)
        )
        columns["float in torch"] = _counted(
            layer.op for layer in octavo.summary(here).coverage.floats if layer.runtime
        )
    return columns


def _counted(ops: Iterable[str]) -> str:
    return ", ".join(f"{count} {op}" for op, count in Counter(ops).most_common(5))


def table(rows: Sequence[Mapping[str, Any]], modes: Sequence[str]) -> str:
    """The rows in Markdown, as the docs have them."""
    titles = [f"{mode.replace('_', '-')}: share, dB" for mode in modes]
    columns = ["network", "scope", *titles, "float with multiply-adds (static)", "float in `torch`"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for family in dict.fromkeys(row["family"] for row in rows):
        lines.append(f"| **{family}** |{' |' * (len(columns) - 1)}")
        for row in (row for row in rows if row["family"] == family):
            figures = [_figures(row, mode) for mode in modes]
            notes = [row.get("costs in float") or "-", row.get("float in torch") or "-"]
            cells = [row["network"], row["scope"], *figures, *notes]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _figures(row: Mapping[str, Any], mode: str) -> str:
    share = row.get(f"{mode} share %")
    if share is None:
        return str(row["error"])
    return f"{percent(share / 100)}, {row[f'{mode} dB']:.1f}"


def _kept_rows(path: Path | None) -> dict[str, dict[str, Any]]:
    """The rows of an interrupted run, by network."""
    if path is None or not path.exists():
        return {}
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["network"]: row for row in rows}


def main(words: Sequence[str] | None = None) -> None:
    """Quantize the zoo and report."""
    made = parser(__doc__)
    known = {entry.name: entry for entry in (*zoo.ENTRIES, *zoo.IN_PARTS)}
    made.add_argument("--only", nargs="*", choices=list(known), help="these networks")
    made.add_argument("--modes", nargs="*", default=list(octavo.quantization.targets.MODES))
    made.add_argument("--docs", type=Path, help="file whose table is written anew: docs/reach.md")
    made.add_argument(
        "--resume", type=Path, help="file of rows: those in it stand, others are added as they come"
    )
    options = parsed(made, words)
    entries = [known[name] for name in options.only or known]
    settings = {"networks": len(entries), "target": octavo.host_target()}
    report = Report("reach", "The zoo, quantized", settings)
    there = _kept_rows(options.resume)
    for entry in entries:
        row = there.get(entry.name) or row_of(entry, options.modes)
        report.rows.append(row)
        print(row, flush=True)
        if options.resume and entry.name not in there:
            with options.resume.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    failed = sum("error" in row for row in report.rows)
    report.goals.append(Goal("networks that fail in a mode", failed, 0))
    empty = sum(row.get(f"{mode} share %") == 0 for row in report.rows for mode in options.modes)
    report.goals.append(Goal("networks of which nothing is quantized", empty, 0))
    if options.docs:
        write_table(table(report.rows, options.modes), options.docs)
    report.finish(options.out)


if __name__ == "__main__":
    main()
