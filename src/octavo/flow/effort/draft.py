"""A model that is being refined, and the calibration data that it is fitted to and judged on.

Tested in tests/flow/effort/test_refining.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.errors import InputError
from octavo.graph.batches import size_of
from octavo.graph.graph import Graph
from octavo.graph.program import run_of
from octavo.numerics.sqnr import sqnr_db
from octavo.quantization.calibrate import Calibrated, Calibration
from octavo.quantization.convert import quantize_graph
from octavo.quantization.plan import Plan
from octavo.quantization.weights import WeightMethod

Batch = Sequence[Tensor]
_HELD_BACK = 8  # one batch in so many is for judging
_SAMPLES = 128  # for judging at least, unless that is more than half: fewer tell chance


@dataclass(frozen=True)
class Samples:
    """Calibration data as the graph takes it.

    Attributes:
        fitted: what methods see.
        held: what they are judged on, and never see.
    """

    fitted: Sequence[Batch]
    held: Sequence[Batch]

    @classmethod
    def of(cls, batches: Sequence[Batch], is_open: bool = True) -> Samples:
        """Every eighth batch is held back, or more where that is few samples; of a single one the
        second half, if all of its tensors have as many samples; else methods are judged on what
        they have seen.

        Args:
            batches: in their order.
            is_open: whether the model takes batches of any size: a single one is whole if not.
        """
        if len(batches) == 1 and is_open:
            halves = [tensor.chunk(2) if tensor.dim() else (tensor,) for tensor in batches[0]]
            sizes = {tensor.shape[:1] for tensor in batches[0]}
            batches = list(zip(*halves, strict=True)) if len(sizes) == 1 else batches
        seen = sum(map(size_of, batches))
        every = min(max(seen // _SAMPLES, 2), _HELD_BACK)
        held = range(every - 1, len(batches), every)
        fitted = [batch for index, batch in enumerate(batches) if index not in held]
        return cls(fitted, [batches[index] for index in held] or fitted)

    @property
    def has_unseen(self) -> bool:
        """Whether anything was held back."""
        return self.held is not self.fitted

    @property
    def all(self) -> Samples:
        """The same, where methods see everything."""
        if not self.has_unseen:
            return self
        return Samples([*self.fitted, *self.held], self.held)


@dataclass(frozen=True)
class Draft:
    """A model on its way from float to integers.

    Attributes:
        graph: in float.
        plan: what is quantized.
        weights: methods that make integers of weights.
        calibrated: what was found on the samples that are for fitting.
    """

    graph: Graph
    plan: Plan
    weights: tuple[WeightMethod, ...]
    calibrated: Calibrated

    @classmethod
    def of(
        cls, graph: Graph, plan: Plan, weights: Sequence[WeightMethod], samples: Samples
    ) -> Draft:
        """The one of plain static quantization."""
        calibration = Calibration(graph, plan, weights)
        for batch in samples.fitted:
            calibration.observe(list(batch))
        return cls(graph, plan, tuple(weights), calibration.result())

    def changed(
        self,
        samples: Samples,
        plan: Plan | None = None,
        weights: Sequence[WeightMethod] | None = None,
    ) -> Draft:
        """Calibrated again, with another plan or other methods."""
        methods = self.weights if weights is None else weights
        return Draft.of(self.graph, plan or self.plan, methods, samples)

    def quantized(self) -> Graph:
        """The QDQ graph."""
        found = self.calibrated
        return quantize_graph(self.graph, self.plan, found.qparams, self.weights, found.statistics)


class Judge:
    """The signal to noise ratio of drafts' outputs, on the samples that were held back.

    Values that are not finite in float, such as scores that a mask hides, do not count.

    Args:
        graph: the canonical float graph.
        samples: see `Samples`.

    Raises:
        InputError: the graph has no output in float.
    """

    def __init__(self, graph: Graph, samples: Samples) -> None:
        self.batches = [[t.to(graph.device) for t in batch] for batch in samples.held]
        self.exact = list(_outputs(graph, self.batches))
        if not self.exact:
            raise InputError(
                "an effort is judged by the outputs in float, and this model returns none: leave "
                "effort= out, or return what the integers are made of too"
            )

    def __call__(self, draft: Draft) -> float:
        """In dB, of the oracle."""
        signal = noise = 0.0
        found = _outputs(draft.quantized(), self.batches)
        for exact, other in zip(self.exact, found, strict=True):
            counts = exact.isfinite()
            values = exact[counts].double()
            signal += float(values.square().sum())
            noise += float((values - other[counts]).square().sum())
        return sqnr_db(signal, noise)


def _outputs(graph: Graph, batches: Sequence[Batch]) -> Iterator[Tensor]:
    """The float outputs of one batch after the other."""
    run = run_of(graph, graph.device)
    for batch in batches:
        with torch.no_grad():
            results = run(*batch)
        yield from (t for t in results if isinstance(t, Tensor) and t.is_floating_point())
