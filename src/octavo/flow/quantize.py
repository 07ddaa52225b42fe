"""`quantize`: all stages in one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from octavo.arguments import expect
from octavo.errors import CalibrationError, OctavoWarning, PlanError
from octavo.flow.convert import convert
from octavo.graph.batches import Signature, example_call, split_batch, with_floats
from octavo.graph.calls import flatten_call, with_seen
from octavo.graph.capture.capture import capture
from octavo.graph.capture.example import module_of
from octavo.graph.graph import Graph
from octavo.graph.pixels import Pixels
from octavo.model.model import QuantizedModel
from octavo.qat import QATModel
from octavo.quantization.calibrate import NO_CALIBRATION, calibrate
from octavo.quantization.pixel_input import take_pixels
from octavo.quantization.plan import Plan, plan, unmatched_in_words
from octavo.quantization.qconfig import QConfig, QConfigMapping, mapping_of, mode_of
from octavo.quantization.weights import (
    METHODS,
    BiasCorrection,
    WeightMethod,
    with_correction,
)


def quantize(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    calibration: Iterable[Any] | None = None,
    mode: str | None = None,
    qconfig: QConfig | QConfigMapping | None = None,
    target: str = "x86",
    inputs: Callable[[Any], Any] | None = None,
    input_scale: float | None = None,
    input_mean: float | Sequence[float] | None = None,
    input_std: float | Sequence[float] | None = None,
    weights: Sequence[WeightMethod] = (),
    bias_correction: bool = True,
    precision: str = "float32",
    distributed: bool = False,
    progress: bool = True,
) -> QuantizedModel:
    """Quantize a trained model: capture, plan, calibrate, convert.

    Args:
        model: any ``nn.Module`` that ``torch.export`` takes. It is left as it was.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments to capture the
            model with; the first calibration batch without it.
        calibration: any iterable of batches, a ``DataLoader`` as it is; about 100 batches of
            representative data. Labels in a batch are left out, see `octavo.graph.batches`. Only
            static quantization needs it.
        mode: what a layer is where ``qconfig`` says nothing else. ``"static"``: fixed scales, found
            on calibration data. ``"dynamic"``: linear and recurrent layers find the scale of their
            input at each call. ``"weight_only"``: only their weights are integers. Without it
            static if there is calibration data, else what ``qconfig`` is, else dynamic.
        qconfig: one `QConfig` for all layers, or a `QConfigMapping`; the target's default without.
        target: where the model will run, see `octavo.quantization.targets`; `host_target` tells
            which suits the CPU at hand.
        inputs: maps a batch to the model's arguments, where the default reading does not fit.
        input_scale, input_mean, input_std: if any is given, the quantized model takes uint8 pixels
            for its image (the first float input of four dimensions), and computes
            ``(x * input_scale - input_mean) / input_std`` itself; mean and std are for each
            channel, or one for all. Without them 1 / 255, 0 and 1. The images of
            ``example_inputs`` and ``calibration`` may be such pixels, or floats that were
            preprocessed like that.
        weights: how weights become integers: methods, which apply in this order, each to what the
            one before has made; to nearest without any. See
            `octavo.quantization.weights.WeightMethod` for how to write one.
        bias_correction: let biases take back the shift of each static layer's mean output that
            rounding its weights brings: `octavo.BiasCorrection`, the last of the methods unless it
            is among ``weights``.
        precision: what stays float computes in ``"float32"``, in ``"bfloat16"``, or, with
            ``"auto"``, in bfloat16 where the CPU has instructions for it. bfloat16 is faster there
            and keeps 8 bits of each value; see `QuantizedModel.lower`.
        distributed: in ``torchrun``: each process calibrates on its own part of the data, and all
            get what they have seen together.
        progress: show a progress bar on a terminal.

    Returns:
        The quantized model, on the ``torch`` runtime, or on ``reference`` if ``model`` is not on
        the CPU.

    Raises:
        CaptureError: the model cannot be exported.
        PlanError: a rule names an unknown module or asks for a mode that a layer cannot have,
            nothing would be quantized, or the model is not a float model.
        CalibrationError: no data, or data that does not fit.
        InputError: ``input_scale``, ``input_mean`` or ``input_std`` does not fit the model, or it
            is not a module.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> float_model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(),
        ...                             nn.Linear(288, 10))
        >>> batches = [torch.rand(16, 3, 8, 8) for _ in range(4)]
        >>> q = quantize(float_model, calibration=batches, target=octavo.host_target())
        >>> q(torch.rand(5, 3, 8, 8)).shape
        torch.Size([5, 10])
    """
    if isinstance(model, QATModel):
        raise PlanError("the model is prepared for training: octavo.convert makes it int8")
    if isinstance(model, QuantizedModel):
        raise PlanError("the model is quantized already: start from the float model")
    expect(METHODS, weights=weights)
    methods = with_correction(weights, bias_correction)
    model = module_of(model)
    if mode is None:
        mode = "static" if calibration is not None else mode_of(qconfig, "dynamic")
    signature = Signature.of(model)
    pixels = Pixels.given(input_scale, input_mean, input_std)
    if mode == "static" and calibration is None and example_inputs is None:
        raise CalibrationError(NO_CALIBRATION)
    example, calibration = example_call(example_inputs, calibration, signature, inputs)
    example = with_floats(example, pixels).beside(model)
    graph = capture(model, example.args, example.kwargs, progress=progress)
    signature = Signature.of(model, graph.arguments)
    example_tensors = flatten_call(graph, example.args, example.kwargs)
    graph = with_seen(graph, example_tensors)
    if pixels is not None:
        take_pixels(graph, pixels)  # what does not fit is said before the long calibration
        inputs = _reading_floats(pixels, signature, inputs)
    decided = plan(graph, mapping_of(qconfig), target, mode, precision)
    if decided.unmatched:
        warnings.warn(unmatched_in_words(graph, decided), OctavoWarning, stacklevel=2)
    return quantize_captured(
        graph,
        decided,
        calibration,
        weights=methods,
        signature=signature,
        inputs=inputs,
        distributed=distributed,
        progress=progress,
        pixels=pixels,
        samples=None if pixels is not None else _few(graph, example_tensors),
    )


def quantize_captured(
    graph: Graph,
    plan: Plan,
    data: Iterable[Any] | None,
    *,
    weights: Sequence[WeightMethod] = (BiasCorrection(),),
    signature: Signature | None = None,
    inputs: Callable[[Any], Any] | None = None,
    distributed: bool = False,
    progress: bool = True,
    pixels: Pixels | None = None,
    samples: Sequence[Tensor] | None = None,
) -> QuantizedModel:
    """`quantize`, from the captured model and its plan on: calibrate, then convert.

    Arguments and errors as for `octavo.calibrate` and `convert`.
    """
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
    seen = (
        replace(entry, seen=calibrated.seen.get(entry.name, entry.seen)) for entry in graph.inputs
    )
    return convert(
        replace(graph, inputs=tuple(seen)),
        plan,
        calibrated.qparams,
        weights=weights,
        statistics=calibrated.statistics,
        signature=signature,
        batches=calibrated.batches,
        pixels=pixels,
        samples=samples,
    )


def _few(graph: Graph, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The first samples of a batch."""
    return tuple(
        tensor[:_SAMPLES].clone() if entry.meta.shape[:1] == (None,) else tensor.clone()
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
