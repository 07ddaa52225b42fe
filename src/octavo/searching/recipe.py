"""From a candidate to its model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from octavo.flow.convert import convert
from octavo.flow.whole import quantize_captured
from octavo.graph.batches import Batch, Signature
from octavo.graph.graph import Graph
from octavo.measuring.layers.sensitivity import sensitivity
from octavo.model.model import QuantizedModel
from octavo.qat import QATModel, prepare_qat
from octavo.quantization.plan import plan
from octavo.searching.deadline import Deadline
from octavo.searching.trial import Candidate


@dataclass(frozen=True)
class Recipe:
    """What all candidates of a search have in common.

    Attributes:
        model: the float model.
        graph: that model captured, which takes longer than quantizing it, and is done once.
        signature: the names of its arguments.
        example: a call of it.
        calibration: batches, that can be iterated again and again.
        target: where the model will run.
        inputs: maps a batch to the model's arguments.
        train: trains a prepared model in place.
        progress: bars on a terminal.
        deadline: what is under way then is given up, with `OutOfTime`.
    """

    model: nn.Module
    graph: Graph
    signature: Signature
    example: Batch
    calibration: Iterable[Any] | None
    target: str
    inputs: Callable[[Any], Any] | None
    train: Callable[[QATModel], object] | None
    progress: bool
    deadline: Deadline

    @property
    def _call(self) -> Any:
        return self.example.kwargs or self.example.args

    @property
    def _calibration(self) -> Iterable[Any] | None:
        return None if self.calibration is None else self.deadline.over(self.calibration)

    def build(self, candidate: Candidate) -> QuantizedModel:
        """The candidate's model.

        Raises:
            OctavoError: the model cannot be quantized like that.
        """
        if candidate.trained:
            return self._trained(candidate)
        return quantize_captured(
            self.graph,
            plan(self.graph, candidate.mapping, self.target, candidate.mode),
            self._calibration,
            signature=self.signature,
            inputs=self.inputs,
            progress=self.progress,
        )

    def _trained(self, candidate: Candidate) -> QuantizedModel:
        assert self.train is not None
        qat = prepare_qat(
            self.model,
            self._call,
            candidate.qconfig,
            target=self.target,
            calibration=self._calibration,
            inputs=self.inputs,
            progress=self.progress,
        )
        with self.deadline.watching(qat):
            self.train(qat)
        return convert(qat.eval())

    def ranking(self, data: Iterable[Any], mode: str) -> list[str]:
        """The layers, the most sensitive first, as estimated on these batches."""
        result = sensitivity(
            self.model,
            self._call,
            data=self.deadline.over(data),
            calibration=self._calibration if mode == "static" else None,
            mode=mode,
            exact=False,
            target=self.target,
            inputs=self.inputs,
            progress=self.progress,
        )
        return [layer.layer for layer in result.layers]
