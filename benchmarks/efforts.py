"""What each method of accuracy brings, alone and together, on networks trained on hard digits.

A ResNet, MobileNetV2, MobileNetV3-small, a vision transformer, an LSTM and a GRU, in static int8
with the same 256 calibration images: one method at a time, the recipes of `effort=`, and the peers
at their best settings: torch.ao FX, torchao's PT2E, ONNX Runtime with each of its calibrations,
NNCF with and without its full bias correction. The SQNR of the logits on the test images by exact
arithmetic, the drop of top-1, and the seconds of the whole call. The same layers are int8 in all
rows of Octavo's, but for those that leave in float what peers do: recurrence, attention. The rows
of further draws have other calibration images: so much is chance.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from benchmarks import accuracy, attention, hard_digits, nets, peers
from benchmarks.report import Goal, Report, parsed, parser

FAST = "effort fast"
# What is told of a row -> settings of `octavo.quantize`
EFFORTS: Mapping[str, Mapping[str, Any]] = {
    FAST: {},
    "effort balanced": {"effort": "balanced"},
    "effort best": {"effort": "best"},
}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "histogram alone": {"qconfig": octavo.static_qconfig(observer=octavo.Histogram())},
    "mse alone": {"qconfig": octavo.static_qconfig(observer=octavo.MSE())},
    "entropy alone": {"qconfig": octavo.static_qconfig(observer=octavo.Entropy())},
    "no bias correction": {"bias_correction": False},
    "gptq alone": {"weights": [octavo.GPTQ()]},
    "adaround alone": {"weights": [octavo.AdaRound()]},
    "reconstruction alone": {"weights": [octavo.Reconstruction()]},
}
# What peers leave in float of a network -> the operators.
_ATTENTION = ("scaled_dot_product_attention", "add", "layer_norm", "gelu", "mean")
LEFT_IN_FLOAT: Mapping[str, tuple[str, Sequence[str]]] = {
    attention.NETWORK: ("all but linear layers", _ATTENTION),
    "small LSTM": ("recurrence", ("lstm",)),
    "small GRU": ("recurrence", ("gru",)),
}
LARGEST_TIME = {"effort balanced": 2.0, "effort best": 30.0}  # times that of plain static
Network = Callable[[hard_digits.HardDigits], nn.Module]
NETWORKS: Mapping[str, Network] = {
    **{
        name: lambda data, name=name, make=make: hard_digits.trained(name, make, data)
        for name, make in nets.FOR_DIGITS.items()
    },
    attention.NETWORK: attention.network,
    "small LSTM": lambda data: hard_digits.trained("small LSTM", nets.SmallLSTM, data),
    "small GRU": lambda data: hard_digits.trained("small GRU", nets.SmallGRU, data),
}
FX = "torch.ao FX, onednn"


def ours(
    net: nn.Module, calibration: list[Tensor], settings: Mapping[str, Any], steps: list[str]
) -> nn.Module:
    """In exact arithmetic; the steps that were kept are put into a list."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        q = octavo.quantize(net, calibration=calibration, scope="model", progress=False, **settings)
    steps += [step["step"] for step in q.provenance.get("steps", ()) if step["kept"]]
    return q.lower("reference")


def peers_of(net: nn.Module, calibration: list[Tensor]) -> dict[str, accuracy.Maker]:
    """Each peer at each of its settings, in exact arithmetic as far as it has that."""
    example, batches = (calibration[0],), [(batch,) for batch in calibration]

    def by_onnxruntime(method: str) -> Callable[[Tensor], Tensor]:
        file = peers.onnxruntime_static_file(net, example, batches, method)
        return in_batches(peers.session(file, exact=True), len(example[0]))

    def by_nncf(fast: bool) -> Callable[[Tensor], Tensor]:
        model = peers.nncf_model(
            net,
            example,
            batches,
            transformer=isinstance(net, nets.SmallViT),
            fast_bias_correction=fast,
        )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.xml"
            peers.openvino_file(model, file)
            return in_batches(peers.compiled_by_openvino(file, "f32"), len(example[0]))

    def by_pt2e() -> Callable[[Tensor], Tensor]:
        return in_batches(peers.pt2e(net, example, batches, reference=True), len(example[0]))

    return {
        FX: lambda: peers.fx(net, calibration, "onednn", reference=True),
        "torchao PT2E": by_pt2e,
        **{
            f"ONNX Runtime, {method}": lambda method=method: by_onnxruntime(method)
            for method in ("MinMax", "Percentile", "Entropy")
        },
        "NNCF": lambda: by_nncf(True),
        "NNCF, full bias correction": lambda: by_nncf(False),
    }


def in_batches(model: Callable[..., Tensor], size: int) -> Callable[[Tensor], Tensor]:
    """A model that takes so many images at a time, for any number of them."""

    def answer(images: Tensor) -> Tensor:
        results = []
        for batch in images.split(size):
            missing = size - len(batch)
            whole = torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])])
            results.append(torch.as_tensor(model(whole)).clone()[: len(batch)])
        return torch.cat(results)

    return answer


def as_peers(name: str) -> dict[str, Mapping[str, Any]]:
    """The efforts with what peers leave in float of this network in float too, by their names."""
    if name not in LEFT_IN_FLOAT:
        return {}
    what, operators = LEFT_IN_FLOAT[name]
    mapping = octavo.QConfigMapping()
    for operator in operators:
        mapping.set_object_type(operator, None)
    return {
        f"{way}, float {what}": {**settings, "qconfig": mapping}
        for way, settings in EFFORTS.items()
    }


def rows_of(
    name: str, net: nn.Module, data: hard_digits.HardDigits, draws: int
) -> list[dict[str, Any]]:
    """A row for each way and each peer; of further draws for the efforts and FX."""
    fp32, rows = accuracy.logits(net, data.test), []
    alike = as_peers(name)
    ours(net, data.calibration, {}, [])  # the first call of a process is slower
    for draw in range(draws):
        calibration = hard_digits.calibration_of(data, draw)
        ways = {**EFFORTS, **alike} if draw else {**EFFORTS, **METHODS, **alike}
        rivals = peers_of(net, calibration)
        for way, settings in ways.items():
            steps: list[str] = []
            make = lambda s=settings, c=calibration, kept=steps: ours(net, c, s, kept)  # noqa: E731
            labels = {"network": name, "way": way, "draw": draw}
            rows.append(accuracy.row_of(labels, make, fp32, data) | {"kept": ", ".join(steps)})
        for peer in [FX] if draw else rivals:
            labels = {"network": name, "way": peer, "draw": draw}
            rows.append(accuracy.row_of(labels, rivals[peer], fp32, data))
    return rows


def goals_of(name: str, rows: Sequence[Mapping[str, Any]]) -> list[Goal]:
    """At least 2 dB above the best peer with the same layers in int8, and no drop of 0.3 points;
    never below `fast`, nor too long. Of the first draw, which all have.
    """
    by_way = {row["way"]: row for row in rows if row["draw"] == 0}
    plain, goals = by_way[FAST], []
    alike = {way.partition(",")[0]: way for way in as_peers(name)}
    own = {*EFFORTS, *METHODS, *alike.values()}
    rivals = [row.get("SQNR dB", float("-inf")) for way, row in by_way.items() if way not in own]
    lead = round(max(rivals) + 2.0, 2)
    for way, times in LARGEST_TIME.items():
        row, label = by_way[way], f"{name}: {way}"
        equal = by_way[alike.get(way, way)]
        goals += [
            Goal(f"{label}: SQNR, 2 dB above peers", equal.get("SQNR dB"), lead, False),
            Goal(f"{label}: SQNR of fast", row.get("SQNR dB"), plain.get("SQNR dB", 0.0), False),
            Goal(f"{label}: drop", row.get("drop"), accuracy.LARGEST_DROP),
            Goal(f"{label}: seconds", row.get("seconds"), times * plain.get("seconds", 0.0)),
        ]
    return goals


def main(words: Sequence[str] | None = None) -> None:
    """Train (or take from the cache), quantize, measure, report."""
    made = parser(__doc__)
    made.add_argument("--nets", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    made.add_argument("--resume", action="store_true", help="keep the networks of an earlier run")
    made.add_argument("--draws", type=int, default=3, help="of calibration images")
    options = parsed(made, words)
    data = hard_digits.load()
    report = Report(
        "efforts",
        "Methods of accuracy on hard digits",
        {
            "calibration images": sum(map(len, data.calibration)),
            "test images": len(data.test),
            "draws": options.draws,
        },
    )
    if options.resume:
        report.resume(options.out)
    done = {row["network"] for row in report.rows}
    for name in options.nets:
        if name not in done:
            report.rows += rows_of(name, NETWORKS[name](data), data, options.draws)
            report.write(options.out)
    for name in dict.fromkeys(row["network"] for row in report.rows):
        report.goals += goals_of(name, [row for row in report.rows if row["network"] == name])
    report.finish(options.out)


if __name__ == "__main__":
    main()
