"""`sensitivity`: which layers hurt when they are quantized.

Estimated for all layers in one pass: a layer's own error ``e``, and how the output answers to it.
With ``v`` random, ``v^T J e`` is the directional derivative of ``v^T y``, one backward pass for all
layers, and the mean of its square is ``|J e|^2``: the noise that the layer alone brings to the
output, to first order (Hutchinson 1990; compare Dong et al. 2020, HAWQ-V2, arXiv:1911.03852).

Measured exactly, one layer at a time: this layer alone quantized, and all but this one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from octavo.analysis.variants import (
    Base,
    Variant,
    all_but,
    by_itself,
    layers_of,
    only,
    values_of,
)
from octavo.batches import Batch, Signature, example_call, split_batch
from octavo.calibrate import Calibrated, observed
from octavo.call import build_output, flatten_call
from octavo.capture import capture
from octavo.convert import insert_qdq
from octavo.errors import CalibrationError, InputError
from octavo.evaluation import evaluating
from octavo.graph import Graph
from octavo.json_numbers import finite
from octavo.metrics import Likeness, Metric, TaskMetric, metric_factory
from octavo.plan import Plan, plan
from octavo.program import compile_steps, steps_of
from octavo.progress import track
from octavo.qconfig import QConfig, QConfigMapping
from octavo.text_table import text_table
from octavo.weights import correct_biases, integer_biases

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer.

    Attributes:
        layer: its name.
        estimate_db: SQNR of the output, as estimated, if this layer alone were quantized.
        alone_db: the same, measured; ``None`` if it was not.
        alone: the metric with this layer alone quantized.
        without_db: SQNR of the output with all but this layer quantized, measured.
        without: the metric with all but this layer quantized.
    """

    layer: str
    estimate_db: float
    alone_db: float | None = None
    alone: float | None = None
    without_db: float | None = None
    without: float | None = None


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` found: the layers, the most sensitive first. Prints as a table.

    Attributes:
        layers: see `LayerSensitivity`.
        metric: name of the metric.
        float_metric, quantized_metric: with nothing and with all quantized; ``None`` where no
            metric could be had.
        quantized_db: SQNR of the output with all quantized.
        samples: how many were seen.
        complete: whether the whole of the data was seen, and not interrupted.
    """

    layers: tuple[LayerSensitivity, ...]
    metric: str
    float_metric: float | None
    quantized_metric: float | None
    quantized_db: float | None
    samples: int
    complete: bool

    def spearman(self) -> float | None:
        """Rank correlation of the estimate and the measured SQNR of a layer alone."""
        pairs = [(s.estimate_db, s.alone_db) for s in self.layers if s.alone_db is not None]
        return _spearman(*zip(*pairs, strict=True)) if len(pairs) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data; what is infinite is ``None``."""
        found: dict[str, Any] = finite(asdict(self))
        return found

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(title=self._title(), title_justify="left")
        for column in self._columns():
            table.add_column(column, justify="left" if column == "layer" else "right")
        for layer in self.layers:
            table.add_row(*self._cells(layer))
        return table

    def __str__(self) -> str:
        table = text_table([self._columns(), *map(self._cells, self.layers)])
        return f"{self._title()}\n{table}"

    def _title(self) -> str:
        title = f"Sensitivity of {len(self.layers)} layers, {self.samples} samples"
        if self.float_metric is not None and self.quantized_metric is not None:
            title += f"; {self.metric} {self.float_metric:.2f} -> {self.quantized_metric:.2f}"
        return title if self.complete else f"{title} (interrupted)"

    def _columns(self) -> tuple[str, ...]:
        if all(layer.alone_db is None for layer in self.layers):
            return ("layer", "estimate dB")
        return (
            *("layer", "estimate dB", "alone dB", f"alone {self.metric}"),
            *("all but dB", f"all but {self.metric}"),
        )

    def _cells(self, layer: LayerSensitivity) -> tuple[str, ...]:
        numbers = (layer.estimate_db, layer.alone_db, layer.alone, layer.without_db, layer.without)
        cells = ("" if number is None else f"{number:.2f}" for number in numbers)
        return (layer.layer, *cells)[: len(self._columns())]


def sensitivity(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    data: Iterable[Any],
    calibration: Iterable[Any] | None = None,
    metric: str | Metric | None = None,
    exact: bool = True,
    mode: str | None = None,
    qconfig: QConfig | QConfigMapping | None = None,
    target: str = "x86",
    inputs: Callable[[Any], Any] | None = None,
    bias_correction: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Sensitivity:
    """Which layers hurt when they are quantized.

    All is found in one pass over ``data``; stopped with Ctrl-C, what was seen so far is returned.

    Args:
        model: as for `octavo.quantize`, and so are ``example_inputs``, ``calibration``, ``mode``,
            ``qconfig``, ``target``, ``inputs`` and ``bias_correction``.
        data: batches to measure on, with labels if there is a metric.
        metric: as for `octavo.compare`; top-1 where the labels allow it.
        exact: measure each layer alone, and all but each, too; else the estimate is all.
        seed: of the directions that the estimate probes.
        progress: bars on a terminal.

    Raises:
        InputError: no data, or a metric that cannot be had of it.
        CaptureError, PlanError, CalibrationError: as `octavo.quantize`.

    Example:
        >>> print(octavo.sensitivity(model, calibration=loader, data=loader))  # doctest: +SKIP
    """
    signature = Signature.of(model.forward)
    mapping = QConfigMapping().set_global(qconfig) if isinstance(qconfig, QConfig) else qconfig
    if mode is None:
        own = qconfig.mode if isinstance(qconfig, QConfig) else "dynamic"
        mode = "static" if calibration is not None else own
    example, calibration = example_call(example_inputs, calibration, signature, inputs)
    with evaluating(model):
        graph = capture(model, example.args, example.kwargs)
    decided = plan(graph, mapping, target, mode)
    if decided.needs_calibration and calibration is None:
        raise CalibrationError("static quantization needs calibration data: pass calibration=")
    found = observed(
        graph,
        decided,
        calibration if calibration is not None and decided.needs_calibration else [],
        signature=signature,
        inputs=inputs,
        progress=progress,
    )
    variants = _Variants(graph, decided, found.result(), bias_correction)
    study = _Study(variants, metric, exact, seed)
    complete = True
    try:
        for batch in track(data, "measuring layers", progress):
            study.update(split_batch(batch, signature, inputs))
    except KeyboardInterrupt:
        complete = False
    if not study.samples:
        raise InputError("sensitivity got no data; give at least one batch")
    return study.result(complete)


@dataclass(frozen=True)
class _Variants:
    """What the quantized graphs of all variants are made of."""

    graph: Graph
    plan: Plan
    found: Calibrated
    bias_correction: bool

    def by_itself(self, layer: str) -> Graph:
        """The QDQ graph of one layer, which reads what float gives."""
        graph = by_itself(self.graph, layer)
        chosen = only(self.graph, self.plan, layer)
        known = {*graph.metas(), *graph.constants}
        tensors = {name: t for name, t in chosen.tensors.items() if name in known}
        return self.quantized(replace(chosen, tensors=tensors), graph)

    def quantized(self, plan: Plan, graph: Graph | None = None) -> Graph:
        """The QDQ graph of a variant's plan; of the whole without ``graph``."""
        graph, qparams = graph or self.graph, self.found.qparams
        if self.bias_correction:
            weights = {n: qparams[n] for n, t in plan.quantized.items() if t.kind == "weight"}
            graph = correct_biases(graph, weights, self.found.input_means)
        return insert_qdq(integer_biases(graph, plan, qparams), plan, qparams)


class _Study:
    """The sums over the batches so far."""

    def __init__(
        self, variants: _Variants, metric: str | Metric | None, exact: bool, seed: int
    ) -> None:
        graph, decided = variants.graph, variants.plan
        self.graph, self.samples = graph, 0
        self.layers = layers_of(graph, decided)
        self.device = next((t.device for t in graph.constants.values()), torch.device("cpu"))
        chosen = self.layers if exact else []
        alone = {n: variants.quantized(only(graph, decided, n)) for n in chosen}
        without = {n: variants.quantized(all_but(graph, decided, n)) for n in chosen}
        whole = variants.quantized(decided)
        pieces = {n: variants.by_itself(n) for n in self.layers}
        self.estimate = _Estimate(graph, pieces, self.device, seed)
        self.alone = _Trials(graph, alone, metric, self.device)
        self.without = _Trials(whole, without, metric, self.device)

    @torch.no_grad()
    def update(self, call: Batch) -> None:
        tensors = flatten_call(self.graph, call.args, call.kwargs)
        self.samples += tensors[0].shape[0] if tensors and tensors[0].dim() else 1
        exact = self.alone.run(tensors, call.labels, None)
        self.without.run(tensors, call.labels, exact)
        self.estimate.update(tensors)

    def result(self, complete: bool) -> Sensitivity:
        found = []
        for name in self.layers:
            estimate = self.estimate.db(name)
            if name not in self.alone.likeness:
                found.append(LayerSensitivity(name, estimate))
                continue
            found.append(
                LayerSensitivity(
                    name,
                    estimate,
                    self.alone.likeness[name].sqnr_db,
                    self.alone.metrics[name].value(),
                    self.without.likeness[name].sqnr_db,
                    self.without.metrics[name].value(),
                )
            )
        found.sort(key=lambda s: s.estimate_db if s.alone_db is None else s.alone_db)
        return Sensitivity(
            tuple(found),
            self.alone.base_metric.name,
            self.alone.base_metric.value(),
            self.without.base_metric.value(),
            self.without.base_likeness.sqnr_db,
            self.samples,
            complete,
        )


class _Trials:
    """A base and its variants, with a metric and the likeness to float of each."""

    def __init__(
        self,
        base: Graph,
        graphs: Mapping[str, Graph],
        metric: str | Metric | None,
        device: torch.device,
    ) -> None:
        make = metric_factory(metric)
        self.graph = base
        self.variants = {name: Variant.of(base, graph, device) for name, graph in graphs.items()}
        self.base = Base.of(base, list(self.variants.values()), device)
        self.base_metric, self.base_likeness = make(), Likeness()
        self.metrics: dict[str, TaskMetric] = {name: make() for name in graphs}
        self.likeness = {name: Likeness() for name in graphs}

    def run(self, tensors: list[Tensor], labels: Any, exact: Any) -> Any:
        """One batch; ``exact`` is what float gives, and is returned; ``None`` if this is it."""
        values, results = self.base.values(tensors)
        outputs = build_output(self.graph, results)
        exact = outputs if exact is None else exact
        self.base_metric.update(outputs, labels)
        self.base_likeness.update(exact, outputs)
        for name, variant in self.variants.items():
            found = build_output(self.graph, variant.run(*(values[n] for n in variant.needs)))
            self.metrics[name].update(found, labels)
            self.likeness[name].update(exact, found)
        return exact


class _Estimate:
    """Each layer's own error, and what of it reaches the output, to first order."""

    def __init__(
        self, graph: Graph, pieces: Mapping[str, Graph], device: torch.device, seed: int
    ) -> None:
        self.places = {layer: values_of(graph, layer) for layer in pieces}
        self.names = [name for places in self.places.values() for name in places]
        constants = {
            name: t.detach().requires_grad_() if t.is_floating_point() else t
            for name, t in graph.constants.items()
        }
        self.rounded = {
            layer: Variant(
                tuple(given.name for given in piece.inputs),
                compile_steps(
                    [given.name for given in piece.inputs],
                    steps_of(piece, device),
                    piece.output_names(),
                    piece.constants,
                ),
            )
            for layer, piece in pieces.items()
        }
        self.needs = list(dict.fromkeys(n for v in self.rounded.values() for n in v.needs))
        self.run = compile_steps(
            [given.name for given in graph.inputs],
            steps_of(graph, device),
            [*self.names, *self.needs, *graph.output_names()],
            constants,
        )
        self.chance = torch.Generator(device=device).manual_seed(seed)
        self.noise = dict.fromkeys(pieces, 0.0)
        self.signal = 0.0

    def update(self, tensors: list[Tensor]) -> None:
        with torch.enable_grad():
            results = self.run(*tensors)
            values = results[: len(self.names)]
            rest = results[len(self.names) + len(self.needs) :]
            outputs = [t for t in rest if isinstance(t, Tensor) and t.requires_grad]
            probed = torch.stack([(t * self._direction(t)).sum() for t in outputs]).sum()
            gradients = torch.autograd.grad(probed, values, allow_unused=True)
        self.signal += sum(float(t.detach().double().square().sum()) for t in outputs)
        known = dict(zip([*self.names, *self.needs], results, strict=False))
        gradient_of = dict(zip(self.names, gradients, strict=True))
        for layer, places in self.places.items():
            variant = self.rounded[layer]
            found = variant.run(*(known[name] for name in variant.needs))
            self.noise[layer] += sum(
                _answer(gradient_of[name], value - known[name])
                for name, value in zip(places, found, strict=True)
            )

    def _direction(self, output: Tensor) -> Tensor:
        return torch.randn(
            output.shape, generator=self.chance, device=output.device, dtype=output.dtype
        )

    def db(self, layer: str) -> float:
        """SQNR of the output with this layer alone quantized."""
        noise = self.noise[layer]
        if noise == 0.0:
            return math.inf
        return 10.0 * math.log10(self.signal / noise) if self.signal else -math.inf


def _answer(gradient: Tensor | None, error: Tensor) -> float:
    """The sum over the samples of the squared directional derivative."""
    if gradient is None:
        return 0.0
    samples = len(gradient)
    found = torch.linalg.vecdot(gradient.reshape(samples, -1), error.reshape(samples, -1))
    return float(found.double().square().sum())


def _spearman(one: Iterable[float], other: Iterable[float]) -> float:
    """Rank correlation, of at least two pairs."""
    ranks = [torch.tensor(_ranks(list(values))) for values in (one, other)]
    centred = [rank - rank.mean() for rank in ranks]
    length = centred[0].norm() * centred[1].norm()
    return float(centred[0] @ centred[1] / length) if length else 0.0


def _ranks(values: list[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    for rank, index in enumerate(order):
        ranks[index] = float(rank)
    return ranks
