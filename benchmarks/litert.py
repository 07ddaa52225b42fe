"""LiteRT files beside the oracle and beside litert-torch's: the demo's network, and the zoo's.

Each is quantized for the target `edge` and written. "top-1 %": decisions that are the oracle's, by
XNNPACK's kernels and by LiteRT's reference kernels. "of the oracle %": integers of the worst layer
that are the oracle's, given what it gave the layer, and the largest step that one is off, by each
of LiteRT's sets of kernels, with its own rounding in the oracle. "size": the file over the bytes of
the integers that the model's weights are, after 50 kB are taken off. Weights of the zoo are random,
so that a step in one layer moves decisions which a trained network has made (`phones` counts
those).

Where litert-torch and ai-edge-quantizer are installed, they quantize the same network with the same
data, as their pages teach it: "dB" is the SQNR of each to the float network, "in XNNPACK %" its
operators in XNNPACK's delegates, "s" from the float network to the file, "ms" a sample, one thread,
in turns, from inputs that are in place.

    python -m benchmarks.litert --threads 1 --networks resnet18 mobilenet_v2 --docs docs/edge.md
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from benchmarks import reach
from benchmarks.report import Goal, Report, parsed, parser, problem, write_table
from octavo.cli.demo.demo import trained_net
from octavo.errors import OctavoError
from octavo.graph.cuts import Cuts
from octavo.measuring.parity import _compared_layers
from octavo.runtimes.litert.export import to_tflite
from octavo.runtimes.litert.interpreter import Program
from octavo.runtimes.litert.kernels import KERNELS
from octavo.runtimes.litert.package import package
from octavo.runtimes.litert.runtime import Programs
from octavo.runtimes.options import Options
from octavo.runtimes.timing import interleave

import zoo  # isort: skip

DEMO = "demo's network"
ZOO = """
    unet crnn deepspeech tcn conformer yolo_like pointnet autoencoder edsr resnet18 mobilenet_v2
    mobilenet_v3_small efficientnet_b0 shufflenet_v2_x0_5 squeezenet1_1 densenet121 googlenet
    mnasnet0_5 regnet_y_400mf convnext_tiny vit_b_32 bert distilbert mobilebert
""".split()
SAMPLES, EQUAL, SIZE, ALLOWED = 256, 99.9, 1.02, 50_000
XNNPACK, REFERENCE, LAYERS = "top-1 %", "top-1 % by reference", "of the oracle %"
OURS, PEER = "octavo", "litert-torch"


@dataclass(frozen=True)
class Case:
    """Attributes: calibration: batches, a tensor for each input. test: one of samples."""

    name: str
    net: nn.Module
    calibration: list[list[Tensor]]
    test: list[Tensor]
    trained: bool = False

    @property
    def samples(self) -> list[list[Tensor]]:
        """The test batch, one by one."""
        return _one_by_one(self.test)


def case(name: str) -> Case:
    """The network of a name, and data."""
    if name == DEMO:
        demo, loaders = trained_net()
        test = torch.cat([images for images, _ in loaders.test])[:SAMPLES]
        calibration = [[images] for images, _ in loaders.calibration]
        return Case(name, demo, calibration, [test], trained=True)
    entry = zoo.BY_NAME[name]
    batches = [reach.call(entry, reach.CALIBRATED, seed) for seed in range(reach.BATCHES)]
    args, given = reach.call(entry, 8, seed=99)
    calibration = [[*args, *given.values()] for args, given in batches]
    return Case(name, entry.build(), calibration, [*args, *given.values()])


def _one_by_one(batch: Sequence[Tensor]) -> list[list[Tensor]]:
    """A batch as samples."""
    count = len(batch[0])
    return [[tensor[i : i + 1].contiguous() for tensor in batch] for i in range(count)]


def theirs(network: Case) -> bytes:
    """The same network by litert-torch and ai-edge-quantizer: a file's content."""
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    with tempfile.TemporaryDirectory() as folder:
        floats = str(Path(folder, "float.tflite"))
        litert_torch.convert(network.net, tuple(network.samples[0])).export(floats)
        known = package().Interpreter(floats).get_signature_list()
        ((signature, ends),) = known.items()
        data = [
            dict(zip(ends["inputs"], (tensor.numpy() for tensor in sample), strict=True))
            for batch in network.calibration
            for sample in _one_by_one(batch)
        ]
        made = quantizer.Quantizer(floats)
        made.load_quantization_recipe(recipe.static_wi8_ai8())
        return bytes(made.quantize(made.calibrate({signature: data})).quantized_model)


class Peer:
    """A file of litert-torch, run on what the network takes: its ends may be integers."""

    def __init__(self, data: bytes) -> None:
        self.interpreter = package().Interpreter(model_content=data, num_threads=1)
        self.interpreter.allocate_tensors()

    def run(self, sample: Sequence[Tensor]) -> tuple[Tensor, ...]:
        known = self.interpreter.get_input_details()
        for entry, tensor in zip(known, sample, strict=True):
            scale, zero_point = entry["quantization"]
            if scale and tensor.is_floating_point():
                steps = (tensor / scale).round() + zero_point
                tensor = steps.clamp(-128, 127).to(torch.int8)
            self.interpreter.set_tensor(entry["index"], tensor.numpy())
        self.interpreter.invoke()
        return tuple(self._floats(entry) for entry in self.interpreter.get_output_details())

    def _floats(self, entry: dict[str, Any]) -> Tensor:
        result = torch.from_numpy(self.interpreter.get_tensor(entry["index"]))
        scale, zero_point = entry["quantization"]
        return (result.float() - zero_point) * scale if scale else result


def row(network: Case) -> dict[str, Any]:
    """One network, by both."""
    found: dict[str, Any] = {"network": network.name}
    samples = network.samples
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        data = [tuple(batch) for batch in network.calibration]
        q = octavo.quantize(network.net, calibration=data, target="edge", progress=False)
    written = to_tflite(q.graph)
    took = time.perf_counter() - started
    held = [t for t in q.graph.constants.values() if t.dtype in (torch.int8, torch.uint8)]
    integers = sum(tensor.numel() for tensor in held)
    found["size"] = round((len(written.data) - ALLOWED) / integers, 3)
    programs = {kernels: Program(written, kernels) for kernels in TOP_1}
    with torch.no_grad():
        exact = [reach.floats(network.net(*sample)) for sample in samples]
        found |= beside_the_oracle(q, network, programs)
        ours = programs["xnnpack"]
        found |= _columns(OURS, written.data, took, ours.run, samples, exact)
        runs: dict[str, Callable[[], Any]] = {OURS: ours.interpreter.invoke}
        try:
            started = time.perf_counter()
            content = theirs(network)
            took = time.perf_counter() - started
            peer = Peer(content)
            found |= _columns(PEER, content, took, peer.run, samples, exact)
            runs[PEER] = peer.interpreter.invoke
        except ImportError:
            pass
        except Exception as error:  # noqa: BLE001 - a peer may raise anything
            found[f"{PEER} error"] = problem(error)
        torchs = q.lower("torch").lowered.run
        runs["torch"] = lambda: torchs(*samples[0])
        times = interleave(runs, budget_s=10)
    return found | {f"{who} ms": round(1e3 * t.median_s, 3) for who, t in times.items()}


def _columns(
    who: str,
    data: bytes,
    took: float,
    run: Callable[[Sequence[Tensor]], Any],
    samples: Sequence[Sequence[Tensor]],
    exact: Sequence[Tensor],
) -> dict[str, Any]:
    """What is told of a file of either."""
    results = [reach.floats(tuple(run(sample))) for sample in samples]
    return {
        f"{who} dB": round(reach.sqnr_db(exact, results), 1),
        f"{who} in XNNPACK %": round(100 * delegated(data), 1),
        f"{who} MB": round(len(data) / 1e6, 2),
        f"{who} s": round(took, 1),
    }


def delegated(data: bytes) -> float:
    """The share of a file's operators that are XNNPACK's."""
    interpreter = package().Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    listed = interpreter._get_ops_details()
    delegates = [each for each in listed if each["op_name"] == "DELEGATE"]
    operators = [each for each in listed if each["op_name"] != "DELEGATE"]
    makers = {result: each for each in operators for result in each["outputs"].tolist()}
    inside: set[int] = set()
    for delegate in delegates:
        given, asked = set(delegate["inputs"].tolist()), delegate["outputs"].tolist()
        while asked:  # what makes its results, back to what it is given
            tensor = asked.pop()
            maker = makers.get(tensor)
            if maker is not None and tensor not in given and maker["index"] not in inside:
                inside.add(maker["index"])
                asked += maker["inputs"].tolist()
    return len(inside) / len(operators)


TOP_1 = {"xnnpack": XNNPACK, "reference": REFERENCE}


def _of(kernels: str) -> str:
    """What a column's name ends in."""
    return "" if kernels == "xnnpack" else f", {kernels}"


def beside_the_oracle(
    q: octavo.QuantizedModel, network: Case, programs: dict[str, Program]
) -> dict[str, Any]:
    """How near our file is to the oracle: decisions end to end, integers layer by layer."""
    oracle, samples = q.lower("reference"), network.samples
    expected = [_decided(oracle.lowered.run(*sample)) for sample in samples]
    found: dict[str, Any] = {}
    for kernels, column in TOP_1.items():
        results = [_decided(programs[kernels].run(sample)) for sample in samples]
        same = [torch.equal(a, b) for a, b in zip(expected, results, strict=True)]
        found[column] = round(100 * sum(same) / len(samples), 2)
    few = [tensor[:8] for tensor in network.test]
    cuts = Cuts.of(q.graph, few)
    for kernels in KERNELS:
        run = Programs(cuts.graph, Options(), kernels)
        layers = _compared_layers(cuts.expecting(run.oracle), run.run)
        whose = _of(kernels)
        found[LAYERS + whose] = round(100 * (1 - max(layer.unequal for layer in layers)), 3)
        found[f"largest step{whose}"] = max(layer.steps or 0 for layer in layers)
    return found


def _decided(results: Sequence[Any]) -> Tensor:
    """The class of a sample, or of each of its places: the first result's largest score."""
    return next(r for r in results if isinstance(r, Tensor)).flatten(1).argmax(-1)


# Column of both -> what the docs call it.
BESIDE = {
    "dB": "SQNR, dB",
    "in XNNPACK %": "in XNNPACK, %",
    "MB": "file, MB",
    "s": "export, s",
    "ms": "a sample, ms",
}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Ours and litert-torch's in Markdown, as the docs have them."""
    lines = [f"| beside {PEER} | {' | '.join(BESIDE.values())} |"]
    lines.append(f"|{' --- |' * (len(BESIDE) + 1)}")
    for row in rows:
        if f"{PEER} ms" in row:
            cells = (f"{row[f'{OURS} {key}']} / {row[f'{PEER} {key}']}" for key in BESIDE)
            lines.append(f"| {row['network']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def goals(rows: Sequence[dict[str, Any]]) -> list[Goal]:
    known = [each for each in rows if LAYERS in each]
    both = [each for each in known if f"{PEER} ms" in each]
    made = [
        Goal("networks exported", float(len(known)), float(len(rows)), at_most=False),
        Goal("size, worst", max((each["size"] for each in known), default=None), SIZE),
    ]
    for kernels in KERNELS:
        least = min((each[LAYERS + _of(kernels)] for each in known), default=None)
        name = f"integers equal to the oracle's, worst layer, %{_of(kernels)}"
        made.append(Goal(name, least, EQUAL, at_most=False))
    for column, at_most in (("dB", False), ("in XNNPACK %", False), ("MB", True), ("s", True)):
        made.append(Goal(f"{column}: networks behind {PEER}", _behind(both, column, at_most), 0))
    ratios = [each[f"{OURS} ms"] / each[f"{PEER} ms"] for each in both]
    return [*made, Goal(f"time over {PEER}'s, worst", max(ratios, default=None), 1.05)]


def _behind(rows: Sequence[dict[str, Any]], column: str, at_most: bool) -> float | None:
    pairs = [(each[f"{OURS} {column}"], each[f"{PEER} {column}"]) for each in rows]
    worse = [ours > peer if at_most else ours < peer for ours, peer in pairs]
    return float(sum(worse)) if rows else None


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    known = [DEMO, *ZOO]
    made.add_argument("--networks", nargs="*", default=known, choices=known)
    made.add_argument("--docs", type=Path, help="file whose table is written anew: docs/edge.md")
    options = parsed(made, words)
    settings = {"test samples": SAMPLES}
    report = Report("litert", "LiteRT files beside the oracle and litert-torch's", settings)
    report.resume(options.out)
    there = {each["network"] for each in report.rows}
    for name in options.networks:
        if name in there:
            continue
        try:
            report.rows.append(row(case(name)))
        except OctavoError as error:
            report.rows.append({"network": name, "error": problem(error)})
        report.write(options.out)
    report.goals = goals(report.rows)
    if options.docs:
        write_table(table(report.rows), options.docs)
    report.finish(options.out)


if __name__ == "__main__":
    main()
