"""What is captured and quantized, over the whole zoo of the tests: static, dynamic, weight-only.

For each network and mode: the share of all multiply-accumulates that runs on integer weights, the
SQNR of the outputs against the float network, and what stayed float. Weights are random, so the
SQNR is that of a network that nothing has made robust: deep networks without shortcuts or with many
branches come out far lower than trained ones do. Exact arithmetic (`reference`), target x86; the
last columns say how the `torch` runtime of this CPU ran it, for the target that suits the CPU.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import octavo
from benchmarks.report import Goal, Report, parsed, parser, problem
from octavo.graph.calls import flatten_call
from octavo.graph.capture.torch_export import as_records
from octavo.graph.graph import Graph, Node
from octavo.measuring.metrics import Likeness

from benchmarks import layers, nets  # isort: skip  # noqa: F401  (nets finds the zoo)
import zoo  # isort: skip

CAPTURED, CALIBRATED, RUN = 2, 4, (1, 3)  # batch sizes
BATCHES = 4
# Layers that a mode quantizes where a rule asks: what is only made of these takes that rule.
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose2d")


def rule_for(graph: Graph, mode: str, target: str) -> octavo.QConfigMapping | None:
    """Convolutions, where there is nothing else: they are static unless a rule asks."""
    ops = {node.short_op for node in graph.nodes}
    if mode == "static" or ops & {"linear", "lstm", "gru", "embedding"}:
        return None
    qconfig = octavo.dynamic_qconfig(target) if mode == "dynamic" else octavo.weight_only_qconfig()
    mapping = octavo.QConfigMapping()
    for op in ops & set(_CONVOLUTIONS):
        mapping.set_object_type(op, qconfig)
    return mapping


def quantized(
    entry: zoo.Entry, model: nn.Module, graph: Graph, mode: str, target: str
) -> octavo.QuantizedModel:
    """All stages behind the capture."""
    plan = octavo.plan(graph, rule_for(graph, mode, target), target, mode)
    calibration = octavo.Calibration(graph, plan)
    if plan.needs_calibration:
        for seed in range(BATCHES):
            args, kwargs = call(entry, CALIBRATED, seed)
            calibration.observe(flatten_call(graph, args, kwargs))
    found = calibration.result()
    graph = octavo.correct_biases(graph, found.qparams, found.input_means)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        return octavo.convert(graph, plan, found.qparams, batches=found.batches)


def call(entry: zoo.Entry, batch: int, seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return zoo.arguments(entry.example(batch))


def floats(result: object) -> Tensor:
    """All float values of a result, in one row."""
    leaves = pytree.tree_leaves(as_records(result))
    tensors = [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]
    return torch.cat([t.detach().flatten() for t in tensors])


def sqnr_db(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    likeness = Likeness()
    for one, other in zip(expected, found, strict=True):
        likeness.update(one[None], other[None])
    return likeness.sqnr_db


def multiply_accumulates(graph: Graph, args: Sequence[Tensor]) -> dict[str, int]:
    """Node -> its number of multiply-accumulates for these inputs."""
    heavy = [node for node in graph.nodes if node.short_op in _COUNTS and node.meta is not None]
    lists = [node for node in graph.nodes if node.short_op in ("lstm", "gru")]
    names = {node.name for node in heavy}
    for node in (*heavy, *lists):
        names |= {name for name in node.refs() if name not in graph.constants}
    names = {name for name in names if graph.metas.get(name) is not None}
    values = dict(graph.constants) | layers.record(graph, names, *args)
    return {node.name: _COUNTS[node.short_op](node, values) for node in (*heavy, *lists)}


def _of_convolution(node: Node, values: Mapping[str, Tensor]) -> int:
    weight = values[node.args[1].name]
    return values[node.name].numel() * weight[0].numel()


def _of_transposed(node: Node, values: Mapping[str, Tensor]) -> int:
    return values[node.args[0].name].numel() * values[node.args[1].name][0].numel()


def _of_product(node: Node, values: Mapping[str, Tensor]) -> int:
    return values[node.name].numel() * values[node.args[0].name].shape[-1]


def _of_attention(node: Node, values: Mapping[str, Tensor]) -> int:
    query, key, value = (values[arg.name] for arg in node.args[:3])
    scores = query.numel() // query.shape[-1] * key.shape[-2]
    return scores * (query.shape[-1] + value.shape[-1])


def _of_recurrent(node: Node, values: Mapping[str, Tensor]) -> int:
    x = values[node.args[0].name]
    weights = [values[arg.name] for arg in node.args[2] if values[arg.name].dim() == 2]
    return x.numel() // x.shape[-1] * sum(weight.numel() for weight in weights)


_COUNTS = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _of_convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _of_transposed),
    **dict.fromkeys(("linear", "matmul", "bmm"), _of_product),
    "scaled_dot_product_attention": _of_attention,
    **dict.fromkeys(("lstm", "gru"), _of_recurrent),
}


def row_of(entry: zoo.Entry, modes: Sequence[str]) -> dict[str, Any]:
    """One network: captured once, quantized in each mode for x86 and for this CPU."""
    row: dict[str, Any] = {"network": entry.name, "family": entry.family}
    try:
        model = entry.build()
        args, kwargs = call(entry, CAPTURED, 0)
        graph = octavo.capture(model, args, kwargs)
        counts = multiply_accumulates(graph, flatten_call(graph, args, kwargs))
    except Exception as error:  # noqa: BLE001  (whatever fails is this network's result)
        return row | {"error": problem(error)}
    calls = [call(entry, batch, 100 + batch) for batch in RUN]
    with torch.no_grad():
        expected = [floats(model(*args, **kwargs)) for args, kwargs in calls]
    for mode in modes:
        try:
            row |= _mode_columns(entry, model, graph, mode, counts, calls, expected)
        except Exception as error:  # noqa: BLE001
            row["error"] = f"{mode}: {problem(error)}"
    return row


def _mode_columns(
    entry: zoo.Entry,
    model: nn.Module,
    graph: Graph,
    mode: str,
    counts: Mapping[str, int],
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]],
    expected: Sequence[Tensor],
) -> dict[str, Any]:
    exact = quantized(entry, model, graph, mode, "x86").lower("reference")
    here = quantized(entry, model, graph, mode, octavo.host_target())
    total = max(1, sum(counts.values()))
    planned = {name for name, t in exact.plan.tensors.items() if t.runs not in ("", "float")}
    share = sum(count for name, count in counts.items() if name in planned) / total
    found = [floats(exact(*args, **kwargs)) for args, kwargs in calls]
    ran = [floats(here(*args, **kwargs)) for args, kwargs in calls]
    columns = {
        f"{mode} share %": round(100 * share, 1),
        f"{mode} SQNR dB": round(sqnr_db(expected, found), 1),
        f"{mode} torch dB": round(sqnr_db(expected, ran), 1),
    }
    if mode == "static":
        columns["stayed float"] = _float_ops(exact)
        columns["no kernel in torch"] = _counted(
            here.plan.tensors[name].op for name in here.lowered.fallbacks
        )
    if not all(map(math.isfinite, columns_of_numbers(columns))):
        raise ValueError(f"a result is not finite: {columns}")
    return columns


def columns_of_numbers(columns: Mapping[str, Any]) -> list[float]:
    return [value for value in columns.values() if isinstance(value, float)]


# Operators that move or make no values of their own: nobody asks why they are float.
_SILENT = frozenset(
    """
    getitem sym_size reshape view permute transpose slice select unsqueeze squeeze expand flatten
    chunk split split_with_sizes unbind cat stack zeros ones arange full mul_int add_int
    """.split()
)


def _float_ops(q: octavo.QuantizedModel) -> str:
    tensors = q.plan.tensors.values()
    left = [t.op for t in tensors if t.kind == "activation" and t.runs == "float"]
    return _counted(op for op in left if op not in _SILENT)


def _counted(ops: Any) -> str:
    return ", ".join(f"{count} {op}" for op, count in Counter(ops).most_common(5))


def main(words: Sequence[str] | None = None) -> None:
    """Quantize the zoo and report."""
    made = parser(__doc__)
    made.add_argument("--only", nargs="*", choices=list(zoo.BY_NAME), help="these networks")
    made.add_argument("--modes", nargs="*", default=list(octavo.quantization.targets.MODES))
    options = parsed(made, words)
    entries = [zoo.BY_NAME[name] for name in options.only] if options.only else zoo.ENTRIES
    settings = {"networks": len(entries), "target": "x86", "torch": octavo.host_target()}
    report = Report("reach", "The zoo, quantized", settings)
    for entry in entries:
        report.rows.append(row_of(entry, options.modes))
        print(report.rows[-1], flush=True)
    failed = sum("error" in row for row in report.rows)
    report.goals.append(Goal("networks that fail in a mode", failed, 0))
    empty = sum(row.get(f"{mode} share %") == 0 for row in report.rows for mode in options.modes)
    report.goals.append(Goal("networks of which nothing is quantized", empty, 0))
    report.finish(options.out)


if __name__ == "__main__":
    main()
