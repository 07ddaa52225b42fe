"""A model as one graph: capture, plan, calibrate, convert.

Tested in tests/flow/test_quantize.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from octavo.errors import warn_user
from octavo.flow.convert import convert_calibrated, convert_draft
from octavo.flow.effort.islands import Planner
from octavo.flow.effort.recipes import RECIPES
from octavo.flow.effort.refining import refined_on
from octavo.flow.running import Source
from octavo.flow.settings import Settings
from octavo.graph.batches import Batch, Signature, split_batch, with_floats
from octavo.graph.calls import first_samples, flatten_call, with_seen
from octavo.graph.capture.capture import capture
from octavo.graph.graph import Graph
from octavo.graph.losses import signature_with_losses
from octavo.graph.pixels import Pixels
from octavo.model.model import QuantizedModel
from octavo.qat.reconstruction import Reconstruction
from octavo.quantization.calibrate import calibrate
from octavo.quantization.pixel_input import take_pixels
from octavo.quantization.plan import Plan, unmatched_in_words
from octavo.quantization.weights import WeightMethod


def quantize_whole(
    source: Source, example: Batch, settings: Settings, pixels: Pixels | None = None
) -> QuantizedModel:
    """`octavo.quantize` with ``scope="model"``.

    Args:
        source: the float model, which is left as it was, and its data.
        example: the call to capture it with.
        settings: how.
        pixels: what makes floats of the uint8 image that the model shall take.

    Raises:
        CaptureError, PlanError, CalibrationError, InputError: as `octavo.quantize`.
    """
    model, inputs = source.model, source.inputs
    example = with_floats(example, pixels).beside(model)
    graph = capture(
        model,
        example.args,
        example.kwargs,
        open_sizes=settings.open_sizes,
        progress=settings.progress,
    )
    signature = signature_with_losses(model, graph, example)
    tensors = flatten_call(graph, example.args, example.kwargs)
    graph = with_seen(graph, tensors)
    if pixels is not None:
        take_pixels(graph, pixels)  # what does not fit is said before the long calibration
        inputs = _reading_floats(pixels, signature, inputs)
    decided = settings.plan(graph)
    if decided.unmatched:
        warn_user(unmatched_in_words(graph, decided))
    return quantize_captured(
        graph,
        decided,
        source.calibration,
        weights=settings.weights,
        signature=signature,
        inputs=inputs,
        distributed=settings.distributed,
        progress=settings.progress,
        pixels=pixels,
        samples=None if pixels is not None else few_samples(graph, tensors),
        effort=settings.effort,
        planner=settings.planner(graph),
    )


def quantize_captured(
    graph: Graph,
    plan: Plan,
    data: Iterable[Any] | None,
    *,
    weights: Sequence[WeightMethod] = (),
    signature: Signature | None = None,
    inputs: Callable[[Any], Any] | None = None,
    distributed: bool = False,
    progress: bool = True,
    pixels: Pixels | None = None,
    samples: Sequence[Tensor] | None = None,
    effort: str = "fast",
    planner: Planner | None = None,
) -> QuantizedModel:
    """`quantize`, from the captured model and its plan on: calibrate, then convert.

    Arguments and errors as for `octavo.calibrate` and `convert`; ``effort`` as for `quantize`.
    ``planner`` leaves more of the graph in float; without it no effort does.
    """
    if RECIPES[effort].steps or any(isinstance(method, Reconstruction) for method in weights):
        draft, taken = refined_on(
            graph, plan, data, weights, effort, signature, inputs, progress, planner
        )
        model = convert_draft(draft, signature=signature, pixels=pixels, samples=samples)
        model.provenance |= {"effort": effort, "steps": [step.to_dict() for step in taken]}
        return model
    calibrated = calibrate(
        graph,
        plan,
        data,
        weights=weights,
        signature=signature,
        inputs=inputs,
        distributed=distributed,
        progress=progress,
    )
    return convert_calibrated(
        graph,
        plan,
        calibrated,
        weights=weights,
        signature=signature,
        pixels=pixels,
        samples=samples,
    )


def few_samples(graph: Graph, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The first samples of a batch, a tensor for each input of the graph."""
    return tuple(
        first_samples(entry, tensor, _SAMPLES).clone()
        for entry, tensor in zip(graph.inputs, tensors, strict=True)
    )


_SAMPLES = 2  # on which runtimes are compared with the oracle


def _reading_floats(
    pixels: Pixels, signature: Signature, inputs: Callable[[Any], Any] | None
) -> Callable[[Any], Any]:
    """From a batch to the float model's arguments."""

    def read(batch: Any) -> Any:
        call = with_floats(split_batch(batch, signature, inputs), pixels)
        return call.kwargs or call.args

    return read
