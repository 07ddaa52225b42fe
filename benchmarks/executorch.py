"""Programs of ExecuTorch beside those of torchao's XNNPACK quantizer, on the zoo's networks.

Both quantize the same network with the same data; both are lowered by ExecuTorch's XNNPACK
partitioner and run here, one sample at a time. "SQNR" is to the float network. "delegated": ours of
multiply-adds in XNNPACK's kernels on integers, torchao's of operators in its delegates. "of the
oracle": integers that are the oracle's, given what it gave the layer, of the worst layer; and the
largest step that one is off.

    python -m benchmarks.executorch --networks resnet18 mobilenet_v2
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import octavo
from benchmarks import reach
from benchmarks.report import Goal, Report, parsed, parser, problem
from octavo.measuring.metrics import Likeness
from octavo.runtimes.executorch.package import method_of
from octavo.runtimes.timing import interleave

import zoo  # isort: skip

NETWORKS = """
    alexnet vgg11_bn resnet18 mobilenet_v2 mobilenet_v3_small efficientnet_b0 shufflenet_v2_x0_5
    squeezenet1_1 densenet121 googlenet mnasnet0_5 regnet_y_400mf convnext_tiny vit_b_32
    segmentation.lraspp_mobilenet_v3_large segmentation.fcn_resnet50
""".split()
SAMPLES = 16
EQUAL = 0.999
ORACLE, STEPS = "of the oracle %", "largest step"


def ours(entry: zoo.Entry, net: nn.Module, inputs: Sequence[Tensor]) -> tuple[bytes, Any]:
    """The content of a file; the quantized model, and what is said of the file."""
    graph = octavo.capture(net, *reach.call(entry, 2, seed=0))
    q = reach.quantized(entry, net, graph, "static", "executorch")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pte")
        written = octavo.export_executorch(q, path, check=False)
        return path.read_bytes(), (q, written)


def torchaos(entry: zoo.Entry, net: nn.Module, inputs: Sequence[Tensor]) -> tuple[bytes, Any]:
    """The same by torchao's quantizer, as ExecuTorch's pages teach it; its program."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(
        get_symmetric_quantization_config(is_per_channel=True)
    )
    args = tuple(inputs)
    prepared = prepare_pt2e(torch.export.export(net, args).module(), quantizer)
    for seed in range(reach.BATCHES):
        batch, _ = reach.call(entry, reach.CALIBRATED, seed)
        for sample in range(len(batch[0])):
            prepared(*(tensor[sample : sample + 1] for tensor in batch))
    exported = torch.export.export(convert_pt2e(prepared), args)
    manager = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    return bytes(manager.to_executorch().buffer), manager


def delegated(manager: Any) -> float:
    """The share of a program's operators that are XNNPACK's."""
    module = manager.exported_program().graph_module
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    outside = [
        n for n in calls if "delegate" not in str(n.target) and "getitem" not in str(n.target)
    ]
    parts = [part.original_module.graph for _, part in module.named_children()]
    inside = sum(node.op == "call_function" for part in parts for node in part.nodes)
    return inside / (inside + len(outside))


def row(name: str) -> dict[str, Any]:
    """One network, by both."""
    entry = zoo.BY_NAME[name]
    net = entry.build()
    batch, _ = reach.call(entry, SAMPLES, seed=99)
    samples = [tuple(tensor[i : i + 1].contiguous() for tensor in batch) for i in range(SAMPLES)]
    found: dict[str, Any] = {"network": name}
    runs: dict[str, Callable[[], Any]] = {}
    with torch.no_grad():
        exact = [reach.floats(net(*sample)) for sample in samples]
        for who, make in (("octavo", ours), ("torchao", torchaos)):
            started = time.perf_counter()
            try:
                data, made = make(entry, net, samples[0])
            except Exception as error:  # noqa: BLE001 - a peer may raise anything
                found[f"{who} error"] = problem(error)
                continue
            found[f"{who} s"] = round(time.perf_counter() - started, 1)
            found[f"{who} MB"] = round(len(data) / 1e6, 2)
            execute = method_of(data)
            runs[who] = lambda execute=execute: execute(samples[0])
            results = [reach.floats(tuple(execute(sample))) for sample in samples]
            found[f"{who} SQNR dB"] = round(reach.sqnr_db(exact, results), 1)
            if who == "octavo":
                found["octavo delegated %"] = round(100 * made[1].share, 1)
                found |= beside_the_oracle(made[0], samples, results)
            else:
                found["torchao delegated %"] = round(100 * delegated(made), 1)
        times = interleave(runs, budget_s=20)
    return found | {f"{who} ms": round(1e3 * latency.median_s, 2) for who, latency in times.items()}


def beside_the_oracle(
    q: octavo.QuantizedModel, samples: Sequence[tuple[Tensor, ...]], results: Sequence[Tensor]
) -> dict[str, Any]:
    """How near our program is to the oracle: top-1 end to end, integers layer by layer."""
    oracle, likeness = q.lower("reference"), Likeness()
    for sample, result in zip(samples, results, strict=True):
        wanted = next(t for t in pytree.tree_leaves(oracle(*sample)) if isinstance(t, Tensor))
        likeness.update(wanted, result[: wanted.numel()].reshape(wanted.shape))
    parity = octavo.verify(q, [samples[0]], runtimes=["executorch"]).runtimes[0]
    layers = [layer for layer in parity.layers if layer.steps is not None]
    return {
        "top-1 %": likeness.agreement,
        ORACLE: round(100 * (1 - max((layer.unequal for layer in layers), default=0.0)), 3),
        STEPS: max((layer.steps or 0 for layer in layers), default=0),
    }


def goals(rows: Sequence[dict[str, Any]]) -> list[Goal]:
    known = [each for each in rows if ORACLE in each]
    both = [each for each in known if "torchao SQNR dB" in each]
    worse = [each for each in both if each["octavo SQNR dB"] < each["torchao SQNR dB"]]
    slower = [each["octavo ms"] / each["torchao ms"] for each in both]
    return [
        Goal("networks exported", float(len(known)), float(len(rows)), at_most=False),
        Goal("integers equal to the oracle's, worst layer, %", *_least(known), at_most=False),
        Goal("largest step", max((e[STEPS] for e in known), default=None), 1),
        Goal("networks with less SQNR than torchao's", float(len(worse)), 0),
        Goal("time over torchao's, worst", max(slower, default=None), 1.05),
    ]


def _least(rows: Sequence[dict[str, Any]]) -> tuple[float | None, float]:
    return min((each[ORACLE] for each in rows), default=None), 100 * EQUAL


def main(words: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--networks", nargs="*", default=NETWORKS)
    options = parsed(made, words)
    title = "ExecuTorch's programs on XNNPACK, beside torchao's quantizer"
    report = Report("executorch", title, {"samples": SAMPLES})
    report.resume(Path(options.out))
    known = {each["network"] for each in report.rows}
    for name in options.networks:
        if name not in known:
            report.rows.append(row(name))
            report.write(Path(options.out))
    report.goals = goals(report.rows)
    report.finish(Path(options.out))


if __name__ == "__main__":
    main()
