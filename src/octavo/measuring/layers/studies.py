"""What `sensitivity` studies of a model: its graph, its regions, or its layers.

Tested in tests/measuring/layers/test_parts_study.py and tests/measuring/layers/test_sensitivity.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from torch import nn

from octavo.errors import CaptureError, warn_user
from octavo.flow.finding import Search, find_regions
from octavo.flow.modules import quantize_modules
from octavo.flow.regions import calibrate_regions
from octavo.flow.running import Calls, Source
from octavo.flow.settings import Settings
from octavo.graph.batches import Batch, Signature
from octavo.graph.capture.capture import capture
from octavo.graph.copying import copied
from octavo.graph.evaluation import evaluating
from octavo.graph.graph import Graph
from octavo.graph.losses import signature_with_losses
from octavo.measuring.layers.parts_study import PartsStudy
from octavo.measuring.layers.spots import LayerSpot, RegionSpot
from octavo.measuring.layers.study import Study, Sums
from octavo.measuring.metrics import Metric
from octavo.model.parts import parts_of
from octavo.quantization.calibrate import calibrate


class Studied(Protocol):
    """What is studied, batch by batch."""

    @property
    def layers(self) -> list[str]:
        """Names of the layers."""
        ...

    @property
    def exact(self) -> bool:
        """Whether each layer is measured too."""
        ...

    def nothing(self) -> Sums:
        """The sums of no batch."""
        ...

    def opened(self) -> Callable[[tuple[int, Batch]], Sums]:
        """What measures a batch, given its place in the data."""
        ...


@dataclass(frozen=True)
class Wanted:
    """What is to be found: see the arguments of `octavo.sensitivity`."""

    metric: str | Metric | None
    exact: bool
    seed: int


def study_of(
    source: Source, settings: Settings, wanted: Wanted, scope: str
) -> tuple[Studied, Signature]:
    """That of the whole graph, or of the regions; and the signature that batches are read by.

    Raises:
        CaptureError, PlanError, CalibrationError: as `octavo.quantize`.
    """
    model, signature = source.model, Signature.of(source.model)
    if scope == "regions":
        return _of_regions(source, settings, wanted), signature
    example, source = source.example()
    try:
        with evaluating(model):
            graph = capture(model, example.args, example.kwargs, progress=settings.progress)
    except CaptureError as error:
        if scope == "model":
            raise
        partly = _of_regions(source, settings, wanted, str(error))
        warn_user(f"{error}. So the layers of its regions are measured: {', '.join(partly.layers)}")
        return partly, signature
    signature = signature_with_losses(model, graph, example)
    return study_of_graph(graph, signature, source, settings, wanted), signature


def study_of_graph(
    graph: Graph, signature: Signature, source: Source, settings: Settings, wanted: Wanted
) -> Study:
    """That of a model that was captured, on the calibration data of its source.

    Raises:
        PlanError, CalibrationError: as `octavo.quantize`.
    """
    decided = settings.plan(graph)
    calibrated = calibrate(
        graph,
        decided,
        source.calibration,
        weights=settings.weights,
        signature=signature,
        inputs=source.inputs,
        progress=settings.progress,
    )
    exact, seed = wanted.exact, wanted.seed
    return Study(graph, decided, calibrated, wanted.metric, exact, settings.weights, seed)


def _of_regions(source: Source, settings: Settings, wanted: Wanted, why: str = "") -> PartsStudy:
    calls = source.calls()
    search = find_regions(source.model, calls, settings, why)
    return study_of_regions(search, calls, wanted)


def study_of_regions(search: Search, calls: Calls, wanted: Wanted) -> PartsStudy:
    """That of regions that were found.

    Raises:
        CalibrationError: the model cannot be run on the data, or a region never runs.
    """
    calibrated, weights = calibrate_regions(search, calls.all), search.settings.weights
    spots = []
    for path, region in search.regions.items():
        study = Study(
            region.graph,
            region.plan,
            calibrated[path],
            wanted.metric,
            wanted.exact,
            weights,
            wanted.seed,
        )
        spots.append(RegionSpot(path, region, study))
    return PartsStudy(search.model, spots, wanted.metric, wanted.exact, wanted.seed)


def study_of_modules(model: nn.Module, settings: Settings, wanted: Wanted) -> PartsStudy:
    """That of the layers that become modules of `octavo.nn`.

    Raises:
        PlanError: as `octavo.quantize` with ``scope="modules"``.
    """
    own = copied(model).eval()
    parts = parts_of(quantize_modules(own, replace(settings, weights=())))
    spots = [LayerSpot(path, own.get_submodule(path), part) for path, part in parts.items()]
    return PartsStudy(own, spots, wanted.metric, wanted.exact, wanted.seed)
