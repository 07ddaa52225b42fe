"""A model that is being refined, and the calibration data that it is fitted to and judged on.

Tested in tests/flow/effort/test_refining.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from octavo.errors import InputError
from octavo.flow.effort.islands import Planner
from octavo.flow.effort.simulation import simulation_of
from octavo.graph.batches import size_of
from octavo.graph.channels_last import channels_last
from octavo.graph.graph import Graph
from octavo.numerics.affine import QParams, qparams_of_range
from octavo.numerics.observers import FixedRange
from octavo.numerics.sqnr import sqnr_db
from octavo.quantization.calibrate import Calibrated, Calibration
from octavo.quantization.convert import quantize_graph
from octavo.quantization.plan import Plan
from octavo.quantization.weights import Measured, WeightMethod, measured

Batch = Sequence[Tensor]
_HELD_BACK = 8  # one batch in so many is for judging
_SAMPLES = 128  # for judging at least, unless that is more than half: fewer tell chance


@dataclass(frozen=True)
class Observed:
    """A calibration that has ended, and what it found."""

    calibration: Calibration

    @cached_property
    def result(self) -> Calibrated:
        return self.calibration.result()


@dataclass(frozen=True)
class Samples:
    """Calibration data as the graph takes it.

    Attributes:
        fitted: what methods see.
        held: what they are judged on, and never see.
        methods: whose statistics are measured where samples are seen for the first time.
    """

    fitted: Sequence[Batch]
    held: Sequence[Batch]
    methods: tuple[WeightMethod, ...] = ()
    _seen: list[Observed] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        batches: Sequence[Batch],
        is_open: bool = True,
        methods: Sequence[WeightMethod] = (),
    ) -> Samples:
        """Every eighth batch is held back, or more where that is few samples; of a single one the
        second half, if all of its tensors have as many samples; else methods are judged on what
        they have seen.

        Args:
            batches: in their order.
            is_open: whether the model takes batches of any size: a single one is whole if not.
            methods: that will be tried.
        """
        if len(batches) == 1 and is_open:
            halves = [tensor.chunk(2) if tensor.dim() else (tensor,) for tensor in batches[0]]
            sizes = {tensor.shape[:1] for tensor in batches[0]}
            batches = list(zip(*halves, strict=True)) if len(sizes) == 1 else batches
        seen = sum(map(size_of, batches))
        every = min(max(seen // _SAMPLES, 2), _HELD_BACK)
        held = range(every - 1, len(batches), every)
        fitted = [batch for index, batch in enumerate(batches) if index not in held]
        return cls(fitted, [batches[index] for index in held] or fitted, tuple(methods))

    @property
    def has_unseen(self) -> bool:
        """Whether anything was held back."""
        return self.held is not self.fitted

    @property
    def swapped(self) -> Samples:
        """What is judged on changes places with what is seen."""
        return Samples(self.held, self.fitted, self.methods)

    @property
    def folds(self) -> list[Samples]:
        """These, and where half of few samples are held back, the two halves the other way round:
        so that each sample is judged, by what has not seen it.
        """
        few = sum(map(size_of, self.held)) <= 2 * _SAMPLES
        halves = self.has_unseen and 2 * len(self.held) >= len(self.fitted) and few
        return [self, self.swapped] if halves else [self]

    def observed(self, graph: Graph, plan: Plan, weights: tuple[WeightMethod, ...]) -> Observed:
        """All that methods see. What weight methods want to know is the same whatever the ranges
        are, and is measured once; drafts that differ in methods or margins alone share all of it.
        """
        known: Mapping[Measured, Any] = {}
        wanted = measured(graph, plan, weights)
        for seen in self._seen:
            calibration = seen.calibration
            if calibration.graph is graph:
                known = calibration.statistics
                if calibration.plan == plan and all(one in known for one in wanted):
                    return seen
        calibration = Calibration(graph, plan, (*weights, *self.methods), known)
        for batch in self.fitted:
            calibration.observe(list(batch))
        self._seen.append(Observed(calibration))
        return self._seen[-1]


@dataclass(frozen=True)
class Draft:
    """A model on its way from float to integers.

    Attributes:
        graph: in float.
        plan: what is quantized.
        weights: methods that make integers of weights.
        observed: what was found on the samples that are for fitting.
        planner: leaves more of the graph in float; without it nothing can be.
        margin: how many times as wide as what their observers say the ranges of activations are.
            What the least error on some samples asks for clips more of others.
        made: the QDQ graph, where more was done to it than these methods do.
        last: the names of what did that.
    """

    graph: Graph
    plan: Plan
    weights: tuple[WeightMethod, ...]
    observed: Observed
    planner: Planner | None = None
    margin: float = 1.0
    made: Graph | None = None
    last: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        graph: Graph,
        plan: Plan,
        weights: Sequence[WeightMethod],
        samples: Samples,
        planner: Planner | None = None,
        margin: float = 1.0,
    ) -> Draft:
        """The one of plain static quantization, but for the margin."""
        methods = tuple(weights)
        return cls(graph, plan, methods, samples.observed(graph, plan, methods), planner, margin)

    def changed(
        self,
        samples: Samples,
        plan: Plan | None = None,
        weights: Sequence[WeightMethod] | None = None,
        margin: float | None = None,
    ) -> Draft:
        """Calibrated again, with another plan, other methods, or another margin."""
        methods = self.weights if weights is None else weights
        wide = self.margin if margin is None else margin
        return Draft.of(self.graph, plan or self.plan, methods, samples, self.planner, wide)

    def joined(self, other: Observed) -> Draft:
        """With what another calibration of the same plan and methods has seen, too."""
        whole = Calibration(self.graph, self.plan, self.weights)
        for part in (self.observed, other):
            whole.merge(part.calibration)
        return replace(self, observed=Observed(whole))

    @cached_property
    def calibrated(self) -> Calibrated:
        """What was found; its qparams have the margin."""
        plan, found, margin = self.plan, self.observed.result, self.margin
        ranges = {name: _widened(name, plan, found, margin) for name in plan.quantized}
        return replace(found, qparams=ranges)

    @cached_property
    def quantized(self) -> Graph:
        """The QDQ graph; methods take long to round weights, so that it is made once."""
        if self.made is not None:
            return self.made
        found = self.calibrated
        return quantize_graph(self.graph, self.plan, found.qparams, self.weights, found.statistics)


def _widened(name: str, plan: Plan, found: Calibrated, margin: float) -> QParams:
    """The qparams of a tensor whose range, if data has shown it, is so many times as wide."""
    leader = plan.tensors[plan.tensors[name].shares or name]
    bounds, qparams = found.bounds.get(leader.tensor), found.qparams[name]
    fixed = leader.spec is not None and isinstance(leader.spec.observer, FixedRange)
    if margin == 1.0 or bounds is None or fixed:
        return qparams
    return qparams_of_range(bounds.low * margin, bounds.high * margin, qparams.scheme)


class Judge:
    """The signal to noise ratio of drafts' outputs, on the samples that were held back.

    Of several outputs each counts as much, however large its values are: it is the mean of noise
    over signal. Values that are not finite in float, such as scores that a mask hides, and outputs
    that are zero throughout do not count.

    Args:
        graph: the canonical float graph.
        samples: see `Samples`.

    Raises:
        InputError: the graph has no output in float.
    """

    def __init__(self, graph: Graph, samples: Samples) -> None:
        self.batches = [
            [channels_last(t.to(graph.device)) for t in batch] for batch in samples.held
        ]
        self.exact = [_floats(outputs) for outputs in _outputs(graph, self.batches)]
        self.signals = _sums([[t[t.isfinite()] for t in batch] for batch in self.exact])
        if not self.exact[0]:
            raise InputError(
                "an effort is judged by the outputs in float, and this model returns none: leave "
                "effort= out, or return what the integers are made of too"
            )

    def __call__(self, draft: Draft) -> float:
        """In dB, of what the oracle computes."""
        return sqnr_db(1.0, self.noise(draft))

    def noise(self, draft: Draft) -> float:
        """Noise over signal, the mean over outputs; infinite where an output is not finite."""
        errors = []
        found = _outputs(draft.quantized, self.batches)
        for exact, other in zip(self.exact, map(_floats, found), strict=True):
            counts = [values.isfinite() for values in exact]
            errors.append([e[c] - o[c] for e, o, c in zip(exact, other, counts, strict=True)])
        pairs = zip(_sums(errors), self.signals, strict=True)
        shares = [noise / signal for noise, signal in pairs if signal > 0.0]
        mean = sum(shares) / max(len(shares), 1)
        return mean if math.isfinite(mean) else math.inf


def _outputs(graph: Graph, batches: Sequence[Batch]) -> Iterator[Sequence[Any]]:
    """The outputs of one batch after the other."""
    run = simulation_of(graph)
    for batch in batches:
        with torch.no_grad():
            yield run(*batch)


def _floats(outputs: Sequence[Any]) -> list[Tensor]:
    return [t for t in outputs if isinstance(t, Tensor) and t.is_floating_point()]


def _sums(batches: Sequence[Sequence[Tensor]]) -> list[float]:
    """Of each output the sum of the squares of its values, in all batches."""
    squares = [[float(t.double().square().sum()) for t in batch] for batch in batches]
    return [sum(of_one) for of_one in zip(*squares, strict=True)]
