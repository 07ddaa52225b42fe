"""`quantize` for a model that cannot be captured whole: the largest of its submodules that can.

The model is copied and run in Python, as the user runs it. From the outermost modules inwards, each
that is called is captured by itself, and tried in its place; where that fails, its children are.
Then the whole model runs over the data, and each region is calibrated on what it is called with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from torch import nn

from octavo.errors import CalibrationError, OctavoError
from octavo.flow.convert import convert_calibrated
from octavo.flow.finding import SHOWN, Search, find_regions, running
from octavo.flow.running import Calls, Run, run_all
from octavo.flow.settings import Settings
from octavo.flow.watching import hooked
from octavo.graph.calls import flatten_call
from octavo.graph.capture.changes import undone
from octavo.model.language.saving import saved_by_transformers
from octavo.model.parts import regions_of
from octavo.model.tree import outside, put
from octavo.progress import track
from octavo.quantization.calibrate import (
    NO_CALIBRATION,
    Calibrated,
    Calibration,
    gathered,
    of_all_processes,
    stopping_together,
)


def quantize_regions(
    model: nn.Module, calls: Calls, settings: Settings, why: str = ""
) -> nn.Module:
    """A copy of the model, its regions quantized.

    Args:
        model: the float model. It is left as it was.
        calls: how to run it: on the first batches, to find the regions, and on all of them.
        settings: how to quantize them.
        why: the model is not captured whole, for messages.

    Raises:
        CaptureError: there is no region.
        CalibrationError: the model cannot be run on a batch, or a region does not run.
        PlanError: a rule or a path does not fit, or nothing would be quantized.
    """
    with _together(settings):
        search = find_regions(model, calls, settings, why)
    if settings.distributed:
        _check_processes(list(search.regions))
    with undone(search.model.modules()):  # what forward keeps from call to call
        calibrated = calibrate_regions(search, calls.all)
    put_regions(search.model, search, calibrated)
    around = [module for _, module in outside(search.model, regions_of(search.model).values())]
    with running("the model with its regions"), undone(around):
        run_all(search.model, calls.first)
    saved_by_transformers(search.model)
    return search.model


def put_regions(model: nn.Module, search: Search, calibrated: Mapping[str, Calibrated]) -> None:
    """Put quantized regions into a copy of the float model, in place.

    Args:
        model: which they were found in, or a copy of that.
        search: what was found.
        calibrated: region -> what calibration found for it.
    """
    modules = {path: model.get_submodule(path) for path in search.regions}
    for path, region in search.regions.items():
        quantized = convert_calibrated(
            region.graph,
            region.plan,
            calibrated[path],
            weights=search.settings.weights,
            signature=region.signature,
            samples=region.samples,
            place=replace(region.place, around=search.around),
        )
        put(model, modules[path], quantized)


def told_of_regions(model: nn.Module, why: str) -> str:
    """What to say where regions were not asked for."""
    regions = [str(region.place) for region in regions_of(model).values()]
    shown = ", ".join(regions[:SHOWN]) + (", ..." if len(regions) > SHOWN else "")
    return (
        f"{why}. So its largest parts that can be captured are quantized, and the rest runs in "
        f"Python, in float: {len(regions)} regions, {shown}. What comes back is a "
        f"{type(model).__name__}: octavo.summary(q) tells of it, octavo.save(q, path) writes it. "
        'scope="regions" says that this is meant, and scope="model" makes it an error'
    )


def _check_processes(paths: list[str]) -> None:
    """Raise, in all processes of ``torch.distributed``, where they have found different regions.

    Raises:
        CalibrationError: they have, or there is no process group.
    """
    every = gathered(paths)
    other = next((others for others in every if others != every[0]), None)
    if other is not None:
        raise CalibrationError(
            f"the processes have found different regions on their first batches ({every[0]} and "
            f"{other}): give them first batches that lead through the same parts, or name the "
            "regions (only=...)"
        )


def _together(settings: Settings) -> AbstractContextManager[None]:
    return stopping_together() if settings.distributed else nullcontext()


def calibrate_regions(search: Search, data: Iterable[Run] | None) -> dict[str, Calibrated]:
    """What is known of each region's tensors, when the whole float model ran over the data.

    Raises:
        CalibrationError: there is no data, the model cannot be run on it, or a region never runs.
    """
    weights = search.settings.weights
    calibrations = {p: Calibration(r.graph, r.plan, weights) for p, r in search.regions.items()}
    if not any(calibration.needs_data for calibration in calibrations.values()):
        return {path: calibration.result() for path, calibration in calibrations.items()}
    if data is None:
        raise CalibrationError(NO_CALIBRATION)

    def tell(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        region = search.regions[path]
        try:
            tensors = flatten_call(region.graph, args, kwargs)
            if all(tensor.numel() for tensor in tensors):
                calibrations[path].observe(tensors)
        except OctavoError as error:
            raise CalibrationError(f"the region {region.place}: {error}") from error

    with (
        _together(search.settings),
        hooked({p: region.module for p, region in search.regions.items()}, tell),
    ):
        for index, run in enumerate(track(data, "calibrating", search.settings.progress)):
            with running(f"calibration batch {index}"):
                run_all(search.model, [run])
    if search.settings.distributed:
        calibrations = {path: of_all_processes(c) for path, c in calibrations.items()}
    for path, calibration in calibrations.items():
        if not calibration.batches:
            raise CalibrationError(
                f"the region {search.regions[path].place} never runs on the calibration data; give "
                "batches that lead to it, or keep it out (only=...)"
            )
    return {path: calibration.result() for path, calibration in calibrations.items()}
