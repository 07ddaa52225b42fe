"""`convert`: a quantized model from a calibrated graph, or from a trained one.

Tested in tests/flow/test_quantize.py and tests/quantization/test_convert.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo.arguments import called_rightly, expect, of, optional
from octavo.errors import PlanError
from octavo.flow.effort.draft import Draft
from octavo.graph.batches import SIGNATURE, Signature
from octavo.graph.graph import GRAPH, Graph
from octavo.graph.pixels import Pixels
from octavo.model.model import QuantizedModel
from octavo.model.place import Place
from octavo.numerics.affine import QParams
from octavo.qat import QATModel
from octavo.qat.model import prepared_in
from octavo.quantization.calibrate import Calibrated
from octavo.quantization.convert import quantize_graph
from octavo.quantization.pixel_input import take_pixels
from octavo.quantization.plan import PLAN, Plan
from octavo.quantization.weights import METHODS, Measured, WeightMethod, applied
from octavo.version import __version__

_QPARAMS = of(Mapping, way_out="give octavo.calibrate(graph, plan, data).qparams")
_STATISTICS = of(
    Mapping, way_out="give octavo.calibrate(graph, plan, data, weights=weights).statistics"
)
_PIXELS = of(Pixels, way_out="give an octavo.Pixels")


@called_rightly()
def convert(
    source: Graph | nn.Module,
    plan: Plan | None = None,
    qparams: Mapping[str, QParams] | None = None,
    *,
    weights: Sequence[WeightMethod] = (),
    statistics: Mapping[Measured, Any] | None = None,
    signature: Signature | None = None,
    batches: int = 0,
    pixels: Pixels | None = None,
    samples: Sequence[Tensor] | None = None,
    place: Place | None = None,
) -> QuantizedModel:
    """A quantized model from a trained `QATModel`, or from a float graph, a plan and its qparams.

    Args:
        source: from `octavo.prepare_qat`, and trained; in `DataParallel`, `AveragedModel`, timm's
            ``ModelEma`` or what ``torch.compile`` made of it if you like. Or a graph from
            `octavo.capture`.
        plan: from `octavo.plan`, for that graph; a `QATModel` has its own.
        qparams: from `octavo.calibrate`; a `QATModel` has its own.
        weights: how the graph's weights become integers, as for `quantize`; to nearest without.
        statistics: from `octavo.calibrate` with the same methods.
        signature: the argument names of the float model's ``forward``; the graph's without it.
        batches: how many calibration batches there were, for the record.
        pixels: what makes floats of the uint8 image that the model shall take; it takes what
            the float model takes without.
        samples: a batch of inputs, a tensor for each input of the graph, on which lowering compares
            runtimes with the oracle; without it inputs are drawn from the ranges of the data.
        place: the module of a larger model that it stands in for.

    Raises:
        PlanError: the plan is another graph's, qparams are missing, or the module is another one.
        InputError: the graph has no image input that could be ``pixels``.
        CalibrationError: the `QATModel` was neither trained nor calibrated, or ``statistics`` lack
            what one of the methods needs.

    Example:
        >>> graph = octavo.capture(model, images)
        >>> plan = octavo.plan(graph)
        >>> found = octavo.calibrate(graph, plan, loader)
        >>> octavo.convert(graph, plan, found.qparams)(images).shape
        torch.Size([64, 10])
    """
    origin: dict[str, Any]
    expect(METHODS, weights=weights)
    optional(_STATISTICS, statistics=statistics)
    if isinstance(source, nn.Module):
        source = prepared_in(source)
    if isinstance(source, QATModel):
        if plan is not None or qparams is not None or weights:
            raise PlanError("a prepared model has its own plan and qparams: convert it alone")
        signature, plan, qparams = source.signature, source.plan, source.qparams()
        graph, origin = source.deployed(), {"trained": "with rounding"}
    elif plan is None or qparams is None:
        raise PlanError(
            "a graph needs its plan and qparams: convert(graph, plan, qparams); or give a model "
            "from octavo.prepare_qat"
        )
    else:
        expect(GRAPH, source=source)
        expect(PLAN, plan=plan)
        expect(_QPARAMS, qparams=qparams)
        optional(SIGNATURE, signature=signature)
        optional(_PIXELS, pixels=pixels)
        graph, origin = source, _origin(source, plan, weights, batches)
    quantized = quantize_graph(graph, plan, qparams, weights, statistics)
    return _ready(quantized, plan, origin, signature, pixels, samples, place)


def _origin(
    graph: Graph,
    plan: Plan,
    weights: Sequence[WeightMethod],
    batches: int,
    last: Sequence[str] = (),
) -> dict[str, Any]:
    """What is told of how a calibrated model was made."""
    names = [*applied(graph, plan, weights), *last]
    return {"calibration_batches": batches} | ({"weights": ", ".join(names)} if names else {})


def _ready(
    quantized: Graph,
    plan: Plan,
    origin: Mapping[str, Any],
    signature: Signature | None,
    pixels: Pixels | None,
    samples: Sequence[Tensor] | None,
    place: Place | None = None,
) -> QuantizedModel:
    """The model of a QDQ graph, made ready for its runtime."""
    signature = signature or Signature(tuple(quantized.arguments), len(quantized.arguments))
    provenance: dict[str, Any] = {
        "octavo": __version__,
        "torch": torch.__version__,
        "target": plan.target,
        "mode": plan.mode,
        **origin,
    }
    if pixels is not None:
        quantized = take_pixels(quantized, pixels)
        provenance["pixels"] = pixels.to_dict()
    model = QuantizedModel(quantized, plan, signature, provenance, samples=samples, place=place)
    _ = model.lowered
    return model


def convert_calibrated(
    graph: Graph,
    plan: Plan,
    calibrated: Calibrated,
    *,
    weights: Sequence[WeightMethod],
    signature: Signature | None = None,
    pixels: Pixels | None = None,
    samples: Sequence[Tensor] | None = None,
    place: Place | None = None,
) -> QuantizedModel:
    """`convert`, of all that calibration has found.

    Arguments and errors as for `convert`.
    """
    return convert(
        _with_ranges(graph, calibrated),
        plan,
        calibrated.qparams,
        weights=weights,
        statistics=calibrated.statistics,
        signature=signature,
        batches=calibrated.batches,
        pixels=pixels,
        samples=samples,
        place=place,
    )


def convert_draft(
    draft: Draft,
    *,
    signature: Signature | None = None,
    pixels: Pixels | None = None,
    samples: Sequence[Tensor] | None = None,
) -> QuantizedModel:
    """The model of a draft, whose weights are integers already.

    Arguments and errors as for `convert`.
    """
    found = draft.calibrated
    origin = _origin(draft.graph, draft.plan, draft.weights, found.batches, draft.last)
    quantized = _with_ranges(draft.quantized, found)
    return _ready(quantized, draft.plan, origin, signature, pixels, samples)


def _with_ranges(graph: Graph, calibrated: Calibrated) -> Graph:
    """The graph with what was seen at its inputs."""
    seen = (
        replace(entry, seen=calibrated.seen.get(entry.name, entry.seen)) for entry in graph.inputs
    )
    return replace(graph, inputs=tuple(seen))
