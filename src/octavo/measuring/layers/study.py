"""What `sensitivity` measures on a batch, and the sums of that over batches.

Batches are measured apart, wherever a worker is, and their sums are added in the order of the data:
so the result does not depend on who measured what.

Tested in tests/measuring/layers/test_sensitivity.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from octavo.errors import InputError
from octavo.graph.batches import Batch
from octavo.graph.calls import build_output, flatten_call
from octavo.graph.channels_last import channels_last
from octavo.graph.graph import Graph
from octavo.measuring.layers.estimate import Estimate
from octavo.measuring.layers.variants import Base, Variant, all_but, by_itself, layers_of, only
from octavo.measuring.metrics import Likeness, Metric, TopK, is_called, metric_factory
from octavo.measuring.next_tokens import Divergence
from octavo.quantization.calibrate import Calibrated
from octavo.quantization.convert import quantize_graph
from octavo.quantization.plan import Plan
from octavo.quantization.weights import WeightMethod


class Score:
    """A metric and the likeness to float, of one variant.

    Attributes:
        likeness: to the float model's outputs.
        is_alike: whether all outputs had float's shapes. Those of a detector have not: it finds as
            many boxes as it finds.
    """

    def __init__(self, metric: str | Metric | None) -> None:
        self.likeness, self.is_alike = Likeness(), True
        of_tokens = is_called(metric, Divergence.name)
        self._metric = Divergence() if of_tokens else metric_factory(metric)()
        self._calls: list[tuple[Any, Any]] = []  # for a metric of the whole set

    @property
    def name(self) -> str:
        return self._metric.name

    def update(self, exact: Any, outputs: Any, labels: Any) -> None:
        """Add one batch."""
        try:
            self.likeness.update(exact, outputs)
        except InputError:
            self.is_alike = False
        if isinstance(self._metric, Divergence):
            self._metric.update(exact, outputs, labels)
        elif isinstance(self._metric, TopK):
            self._metric.update(outputs, labels)
        else:
            self._calls.append((outputs, labels))

    def add(self, other: Score) -> None:
        """Add the batches of another."""
        self.likeness.add(other.likeness)
        self.is_alike &= other.is_alike
        self._calls += other._calls
        if isinstance(self._metric, Divergence) and isinstance(other._metric, Divergence):
            self._metric.add(other._metric)
        elif isinstance(self._metric, TopK) and isinstance(other._metric, TopK):
            self._metric.right += other._metric.right
            self._metric.total += other._metric.total
            self._metric.problem = self._metric.problem or other._metric.problem

    @property
    def sqnr_db(self) -> float | None:
        """Of the outputs; ``None`` where their shapes differ from float's."""
        return self.likeness.sqnr_db if self.is_alike else None

    def value(self) -> float | None:
        """The metric, where it can be had."""
        calls, self._calls = self._calls, []
        if not isinstance(self._metric, Divergence):
            for outputs, labels in calls:
                self._metric.update(outputs, labels)
        return self._metric.value()


@dataclass
class Scores:
    """Those of a base and its variants, by layer."""

    base: Score
    layers: dict[str, Score]

    @classmethod
    def none(cls, metric: str | Metric | None, layers: list[str]) -> Scores:
        return cls(Score(metric), {layer: Score(metric) for layer in layers})

    def add(self, other: Scores) -> None:
        self.base.add(other.base)
        for layer, score in self.layers.items():
            score.add(other.layers[layer])


@dataclass
class Sums:
    """Of some batches.

    Attributes:
        alone: of the float model, and of it with one layer quantized.
        without: of the quantized model, and of it with one layer in float.
        signal: of the output, squared.
        noise: that a layer brings to it, as estimated.
        samples: how many.
    """

    alone: Scores
    without: Scores
    signal: float = 0.0
    noise: dict[str, float] = field(default_factory=dict)
    samples: int = 0

    def add(self, other: Sums) -> None:
        self.alone.add(other.alone)
        self.without.add(other.without)
        self.signal += other.signal
        for layer, noise in other.noise.items():
            self.noise[layer] = self.noise.get(layer, 0.0) + noise
        self.samples += other.samples


@dataclass(frozen=True)
class Study:
    """What is studied.

    Attributes:
        graph: the captured float model.
        plan: what would be quantized.
        calibrated: what calibration found.
        metric: as for `octavo.compare`.
        exact: measure one layer at a time too.
        weights: methods that make integers of weights.
        seed: of the directions that the estimate probes.
    """

    graph: Graph
    plan: Plan
    calibrated: Calibrated
    metric: str | Metric | None
    exact: bool
    weights: Sequence[WeightMethod]
    seed: int

    @cached_property
    def layers(self) -> list[str]:
        return layers_of(self.graph, self.plan)

    def nothing(self) -> Sums:
        """The sums of no batch."""
        chosen = self.layers if self.exact else []
        return Sums(Scores.none(self.metric, chosen), Scores.none(self.metric, chosen))

    def opened(self) -> Callable[[tuple[int, Batch]], Sums]:
        """What measures a batch, given its place in the data."""
        return _Bench(self).measure

    def by_itself(self, layer: str) -> Graph:
        """The QDQ graph of one layer, which reads what float gives."""
        graph = by_itself(self.graph, layer)
        chosen = only(self.graph, self.plan, layer)
        known = {*graph.metas, *graph.constants}
        tensors = {name: t for name, t in chosen.tensors.items() if name in known}
        return self.quantized(replace(chosen, tensors=tensors), graph)

    def quantized(self, plan: Plan, graph: Graph | None = None) -> Graph:
        """The QDQ graph of a variant's plan; of the whole without ``graph``."""
        calibrated = self.calibrated
        return quantize_graph(
            graph or self.graph, plan, calibrated.qparams, self.weights, calibrated.statistics
        )


class _Bench:
    """All variants, made ready to run."""

    def __init__(self, study: Study) -> None:
        self.study = study
        graph, decided = study.graph, study.plan
        chosen = study.layers if study.exact else []
        alone = {n: study.quantized(only(graph, decided, n)) for n in chosen}
        without = {n: study.quantized(all_but(graph, decided, n)) for n in chosen}
        pieces = {n: study.by_itself(n) for n in study.layers}
        self.estimate = Estimate(graph, pieces, study.seed)
        self.alone = _Trials(graph, alone)
        self.without = _Trials(study.quantized(decided), without)

    @torch.no_grad()
    def measure(self, item: tuple[int, Batch]) -> Sums:
        """The sums of one batch, the ``index``-th of the data."""
        index, call = item
        sums = self.study.nothing()
        tensors = list(map(channels_last, flatten_call(self.study.graph, call.args, call.kwargs)))
        sums.samples = call.size
        sums.signal, sums.noise, results = self.estimate.of(tensors, index)
        exact = build_output(self.study.graph, results)
        self.alone.run(sums.alone, tensors, call.labels, exact, exact)
        self.without.run(sums.without, tensors, call.labels, exact)
        return sums


class _Trials:
    """A base and its variants, which run on what is kept of the base."""

    def __init__(self, base: Graph, graphs: Mapping[str, Graph]) -> None:
        self.graph = base
        self.variants = {name: Variant.of(base, graph) for name, graph in graphs.items()}

    @cached_property
    def base(self) -> Base:
        """Made when it is first needed: what float alone gives is known."""
        return Base.of(self.graph, list(self.variants.values()))

    def run(
        self, scores: Scores, tensors: list[Tensor], labels: Any, exact: Any, outputs: Any = None
    ) -> None:
        """One batch.

        Args:
            scores: that the batch is added to.
            tensors, labels: the batch.
            exact: what float gives.
            outputs: what the base gives, if that is known.
        """
        values: Mapping[str, Any] = {}
        if outputs is None or self.variants:
            values, results = self.base.values(tensors)
            outputs = build_output(self.graph, results)
        scores.base.update(exact, outputs, labels)
        for name, variant in self.variants.items():
            changed = build_output(self.graph, variant.run(*(values[n] for n in variant.needs)))
            scores.layers[name].update(exact, changed, labels)
