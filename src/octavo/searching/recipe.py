"""From a candidate to its model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from octavo.flow.convert import convert
from octavo.flow.finding import Search
from octavo.flow.regions import calibrate_regions, put_regions
from octavo.flow.running import Calls, Source
from octavo.flow.settings import Settings
from octavo.flow.whole import quantize_captured
from octavo.graph.batches import Batch, Signature, split_batch
from octavo.graph.calls import flatten_call
from octavo.graph.copying import copied
from octavo.graph.graph import Graph
from octavo.measuring.layers.sensitivity import measured
from octavo.measuring.layers.studies import Wanted, study_of_graph, study_of_regions
from octavo.measuring.next_tokens import judged
from octavo.measuring.regions import calls_in, named, regions_in
from octavo.progress import track
from octavo.qat import QATModel, prepare_qat
from octavo.quantization.plan import plan
from octavo.quantization.weights import with_correction
from octavo.searching.deadline import Deadline
from octavo.searching.layer_times import BUDGET_S, LayerTime, layer_times
from octavo.searching.trial import Candidate

if TYPE_CHECKING:
    from typing import Self  # which Python 3.10 has not


_ESTIMATE = Wanted(None, exact=False, seed=0)  # of how much each layer hurts


@dataclass(frozen=True)
class Recipe(ABC):
    """What all candidates of a search have in common.

    Attributes:
        model: the float model.
        signature: the names of its arguments.
        example: a call of it.
        calibration: batches, that can be iterated again and again.
        target: where the model will run.
        inputs: maps a batch to the model's arguments.
        progress: bars in terminals and notebooks, lines in logs.
        deadline: what is under way then is given up, with `OutOfTime`.
    """

    model: nn.Module
    signature: Signature
    example: Batch
    calibration: Iterable[Any] | None
    target: str
    inputs: Callable[[Any], Any] | None
    progress: bool
    deadline: Deadline

    @abstractmethod
    def graphs(self) -> Sequence[Graph]:
        """What was captured: it takes longer than quantizing, and is done once."""

    @abstractmethod
    def build(self, candidate: Candidate) -> nn.Module:
        """The candidate's model.

        Raises:
            OctavoError: the model cannot be quantized like that.
        """

    @abstractmethod
    def ranking(self, data: Iterable[Any], mode: str) -> list[str]:
        """The layers, the most sensitive first, as estimated on these batches."""

    @abstractmethod
    def layer_times(self, q: Any) -> tuple[LayerTime, ...]:
        """How long the layers of a candidate's model take on the example."""

    def without_end(self) -> Self:
        """The same with all the time in the world."""
        return replace(self, deadline=Deadline())

    def _calls_of(self, data: Iterable[Any]) -> Iterator[Batch]:
        """Batches as calls, as long as there is time."""
        for batch in track(self.deadline.over(data), "measuring layers", self.progress):
            yield judged(split_batch(batch, self.signature, self.inputs), self.signature, None)

    @property
    def _call(self) -> Any:
        return self.example.kwargs or self.example.args

    @property
    def _calibration(self) -> Iterable[Any] | None:
        return None if self.calibration is None else self.deadline.over(self.calibration)


@dataclass(frozen=True)
class GraphRecipe(Recipe):
    """That of a model which is one graph.

    Attributes:
        graph: the model captured.
        train: trains a prepared model in place.
    """

    graph: Graph
    train: Callable[[QATModel], object] | None

    def graphs(self) -> Sequence[Graph]:
        return [self.graph]

    def build(self, candidate: Candidate) -> nn.Module:
        if candidate.trained:
            return self._trained(candidate)
        return quantize_captured(
            self.graph,
            plan(self.graph, candidate.mapping, self.target, candidate.mode),
            self._calibration,
            weights=with_correction((), self.calibration is not None),
            signature=self.signature,
            inputs=self.inputs,
            progress=self.progress,
        )

    def _trained(self, candidate: Candidate) -> nn.Module:
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
        calibration = self._calibration if mode == "static" else None
        source = Source(self.model, self._call, calibration, self.inputs)
        methods = with_correction((), calibration is not None)
        settings = Settings(self.target, mode, weights=methods, progress=self.progress)
        study = study_of_graph(self.graph, self.signature, source, settings, _ESTIMATE)
        return [layer.layer for layer in measured(study, self._calls_of(data)).layers]

    def layer_times(self, q: Any) -> tuple[LayerTime, ...]:
        return layer_times(q, flatten_call(q.graph, self.example.args, self.example.kwargs))


@dataclass(frozen=True)
class RegionsRecipe(Recipe):
    """That of a model of which regions are quantized, while the rest runs in Python.

    Attributes:
        found: the regions.
    """

    found: Search

    def graphs(self) -> Sequence[Graph]:
        return [region.graph for region in self.found.regions.values()]

    def build(self, candidate: Candidate) -> nn.Module:
        mapping = candidate.mapping
        search = self.found.planned(
            replace(self.found.settings, mode=candidate.mode, mapping=mapping)
        )
        q = copied(search.model)
        put_regions(q, search, calibrate_regions(search, self._calls().all))
        return q

    def ranking(self, data: Iterable[Any], mode: str) -> list[str]:
        search = self.found.planned(replace(self.found.settings, mode=mode))
        study = study_of_regions(search, self._calls(), _ESTIMATE)
        return [layer.layer for layer in measured(study, self._calls_of(data)).layers]

    def layer_times(self, q: Any) -> tuple[LayerTime, ...]:
        """Those of the first call of each region that the example calls."""
        regions = regions_in(q)
        calls = calls_in(self.model, regions, [self.example])
        called = {path: told[0] for path, told in calls.items() if told}
        times = []
        for path, arguments in called.items():
            region = regions[path]
            tensors = flatten_call(region.graph, (), arguments)
            for time in layer_times(region, tensors, BUDGET_S / len(called)):
                times.append(replace(time, layer=named(path, time.layer)))
        return tuple(times)

    def _calls(self) -> Calls:
        return Calls.of(self.model, self._call, self._calibration, self.inputs, None)
