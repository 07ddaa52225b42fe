"""`quantize`: all stages in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar, overload

from torch import nn

from octavo.arguments import FUNCTION, called_rightly, expect, optional
from octavo.errors import CalibrationError, CaptureError, InputError, PlanError, warn_user
from octavo.flow.effort.recipes import check_effort
from octavo.flow.modules import quantize_modules
from octavo.flow.regions import quantize_regions, told_of_regions
from octavo.flow.running import Source
from octavo.flow.settings import NEEDS_NO_GRAPH, ONLY, SCOPE, Only, Settings, default_mode, scope_of
from octavo.flow.whole import quantize_whole
from octavo.graph.capture.example import module_of
from octavo.graph.evaluation import trained_inside
from octavo.graph.open_sizes import OpenSizes
from octavo.graph.pixels import Pixels
from octavo.model.model import QuantizedModel
from octavo.model.nn import QuantizedModule
from octavo.qat import QATModel
from octavo.qat.reconstruction import Reconstruction
from octavo.quantization.calibrate import NO_CALIBRATION
from octavo.quantization.qconfig import QConfig, QConfigMapping, mapping_of, mode_of
from octavo.quantization.weights import METHODS, WeightMethod, with_correction
from octavo.runtimes.cpu import host_target

Model = TypeVar("Model", bound=nn.Module)

_CALIBRATION = "data goes to calibration=, about 100 batches of it"
_BITS = (
    "int8 comes of itself; weights of four bits by "
    "qconfig=octavo.weight_only_qconfig(4, group_size=32)"
)
ELSEWHERE = {
    **dict.fromkeys(("data", "dataset", "dataloader", "loader", "calib"), _CALIBRATION),
    **dict.fromkeys(
        ("calibration_data", "calibration_dataset", "calibration_loader", "calibration_dataloader"),
        _CALIBRATION,
    ),
    **dict.fromkeys(("bits", "nbits", "w_bits", "dtype", "precision_bits"), _BITS),
    "group_size": "write qconfig=octavo.weight_only_qconfig(4, group_size=32)",
    **dict.fromkeys(("quantization_config", "config", "qconfig_mapping"), "it is called qconfig="),
    **dict.fromkeys(("backend", "engine", "platform"), "where it will run is target="),
    "runtime": "lower the model that it returns, q.lower(runtime)",
    "device": "integers run on the CPU; move the model that it returns, q.to(device)",
    "inplace": "the model is left as it was; a new one is returned",
    **dict.fromkeys(
        ("modules_to_not_convert", "ignore", "exclude", "skip", "ignored_scope", "keep_float"),
        'parts stay float by qconfig=octavo.QConfigMapping().set_module_name("head", None)',
    ),
    **dict.fromkeys(
        ("example_input", "inputs_example", "dummy_input", "sample_input"),
        "it is called example_inputs=",
    ),
    "method": "weights=[octavo.GPTQ()] takes methods that round them",
}
"""Keywords of other quantizers, and where Octavo has what they say."""


@overload
def quantize(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    scope: Literal["model"],
    **settings: Any,
) -> QuantizedModel: ...
@overload
def quantize(
    model: Model,
    example_inputs: Any = None,
    *,
    scope: Literal["regions", "modules"],
    **settings: Any,
) -> Model: ...
@overload
def quantize(
    model: Model,
    example_inputs: Any = None,
    *,
    scope: str = "auto",
    **settings: Any,
) -> QuantizedModel | Model: ...
@called_rightly(**ELSEWHERE)  # type: ignore[misc]  # the settings are what follows here
def quantize(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    calibration: Iterable[Any] | None = None,
    mode: str | None = None,
    qconfig: QConfig | QConfigMapping | None = None,
    target: str | None = None,
    inputs: Callable[[Any], Any] | None = None,
    open_sizes: OpenSizes | None = None,
    input_scale: float | None = None,
    input_mean: float | Sequence[float] | None = None,
    input_std: float | Sequence[float] | None = None,
    weights: Sequence[WeightMethod] = (),
    bias_correction: bool = True,
    precision: str = "float32",
    distributed: bool = False,
    progress: bool = True,
    scope: str = "auto",
    only: Only | None = None,
    run: Callable[[nn.Module, Any], object] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    effort: str = "fast",
) -> Any:
    """Quantize a trained model: capture, plan, calibrate, convert.

    Args:
        model: any ``nn.Module``. It is left as it was.
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
        target: where the model will run, see `octavo.quantization.targets`; the CPU at hand
            without it, `host_target`.
        inputs: maps a batch to the model's arguments, where the default reading does not fit.
        open_sizes: sizes that have to be open, with their names: ``{"input_ids": {1: "length"}}``;
            all that the model leaves open without it, see `octavo.capture`. Batches of differing
            sizes need nothing.
        input_scale, input_mean, input_std: if any is given, the quantized model takes uint8 pixels
            for its image (the first float input of four dimensions), and computes
            ``(x * input_scale - input_mean) / input_std`` itself; mean and std are for each
            channel, or one for all. Without them 1 / 255, 0 and 1. The images of
            ``example_inputs`` and ``calibration`` may be such pixels, or floats that were
            preprocessed like that.
        weights: how weights become integers: methods, which apply in this order, each to what the
            one before has made; to nearest without any. See
            `octavo.quantization.weights.WeightMethod` for how to write one.
        bias_correction: with calibration data, let biases take back the shift of each layer's mean
            output that rounding its weights brings: `octavo.BiasCorrection`, the last of the
            methods unless it is among ``weights``.
        precision: what stays float computes in ``"float32"``, in ``"bfloat16"``, or, with
            ``"auto"``, in bfloat16 where the CPU has instructions for it. bfloat16 is faster there
            and keeps 8 bits of each value; see `QuantizedModel.lower`.
        distributed: in ``torchrun``: each process calibrates on its own part of the data, and all
            get what they have seen together.
        progress: show a progress bar on a terminal.
        scope: what becomes a graph. ``"model"``: the whole model. ``"regions"``: the largest of
            its submodules that can be captured; the rest runs in Python as it did. ``"auto"``: the
            whole where that can be captured, else regions, with a warning that says why; and
            ``"modules"`` for weight-only and dynamic quantization without anything to run it on.
            ``"modules"``: no graph; single layers become those of `octavo.nn`, see
            `octavo.flow.modules`. It needs data where ``weights`` do: those of a block are rounded
            with inputs that the rounded blocks before it make.
        only: which regions, or modules: paths, ``["backbone"]``, or a rule, ``only(path, module)``.
            Regions are these modules, or the largest inside of them.
        run: how a batch is run while regions are found and calibrated, where that is not a call of
            the model: ``lambda model, batch: model.generate(**batch)``.
        checkpoint: with ``scope="modules"`` and ``weights``: a folder that keeps the blocks of the
            model whose weights are rounded, so that the same call goes on behind them after it was
            cut off. The data are not kept: give another folder for others.
        effort: of a model that is one graph, with calibration data. ``"balanced"`` and ``"best"``
            try methods one after the other (`octavo.flow.effort.recipes`; which depends on the
            mode and on the bits of the weights), small parts in float among them, on all batches
            but every eighth (of few batches every second), and keep each whose outputs are nearer
            to float on those that are held back. What each brought is written to standard error,
            unless ``progress`` is off, and stays in ``provenance["steps"]``. All batches are held
            in memory.

    Returns:
        The quantized model, on the ``torch`` runtime, or on ``reference`` if ``model`` is not on
        the CPU. With regions it is a copy of ``model``, of its own class, in which quantized models
        stand in the places of submodules: see `octavo.summary`, `octavo.save`, `octavo.load` and
        `octavo.lower`.

    Raises:
        CaptureError: the model, or what ``only`` names, cannot be captured.
        PlanError: a rule names an unknown module or asks for a mode that a layer cannot have,
            nothing would be quantized, or the model is not a float model.
        CalibrationError: no data, or data that does not fit.
        InputError: ``input_scale``, ``input_mean`` or ``input_std`` does not fit the model, it is
            not a module, or fixes a size that has to be open; or arguments contradict each other.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> float_model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(),
        ...                             nn.Linear(288, 10))
        >>> batches = [torch.rand(16, 3, 8, 8) for _ in range(4)]
        >>> q = quantize(float_model, calibration=batches)
        >>> q(torch.rand(5, 3, 8, 8)).shape
        torch.Size([5, 10])
    """
    if isinstance(model, QATModel):
        raise PlanError("the model is prepared for training: octavo.convert makes it int8")
    expect(METHODS, weights=weights)
    expect(SCOPE, scope=scope)
    optional(ONLY, only=only)
    optional(FUNCTION, run=run)
    check_effort(effort)
    model = module_of(model)
    _refuse_quantized(model)
    pixels = Pixels.given(input_scale, input_mean, input_std)
    scope = scope_of(scope, only, run, pixels, open_sizes)
    reconstructs = any(isinstance(method, Reconstruction) for method in weights)
    if effort != "fast" or reconstructs:
        asked = "octavo.Reconstruction" if reconstructs else f"effort={effort!r}"
        scope = _scope_of_effort(asked, scope, distributed)
    has_data = example_inputs is not None or calibration is not None
    if scope == "auto" and not has_data and (mode or mode_of(qconfig, "")) in NEEDS_NO_GRAPH:
        scope = "modules"
    by_modules = scope == "modules"
    if by_modules:
        _refuse_for_modules(run=run, precision=precision != "float32", distributed=distributed)
    elif checkpoint is not None:
        raise InputError(
            'checkpoint= keeps blocks of a model that is quantized with scope="modules": give that '
            "scope, or leave it out"
        )
    mode = mode or default_mode(scope, calibration, qconfig)
    sees_means = mode == "static" or calibration is not None
    settings = Settings(
        host_target() if target is None else target,
        mode,
        precision,
        mapping_of(qconfig),
        weights if by_modules else with_correction(weights, bias_correction and sees_means),
        only,
        distributed,
        progress,
        open_sizes,
        checkpoint,
        effort,
    )
    source = Source(model, example_inputs, calibration, inputs, run)
    if by_modules:
        return quantize_modules(model, settings, source.calls() if has_data else None)
    _tell_of_training(model)
    if settings.mode == "static" and not has_data:
        raise CalibrationError(NO_CALIBRATION)
    if scope == "regions":
        return quantize_regions(model, source.calls(), settings)
    return _whole_or_regions(source, settings, pixels, scope)


def _whole_or_regions(
    source: Source, settings: Settings, pixels: Pixels | None, scope: str
) -> nn.Module:
    """The model as one graph; where it cannot be captured its regions, unless that is an error."""
    example, source = source.example()
    try:
        return quantize_whole(source, example, settings, pixels)
    except CaptureError as error:
        if scope == "model" or error.cause == "call":
            raise
        why = str(error)
    quantized = quantize_regions(source.model, source.calls(), settings, why)
    warn_user(told_of_regions(quantized, why))
    return quantized


def _scope_of_effort(asked: str, scope: str, distributed: bool) -> str:
    """The scope of a model that methods are tried on: one graph.

    Raises:
        InputError: it is quantized in a way that they are not for.
    """
    other = {
        f"scope={scope!r}": scope in ("regions", "modules"),
        "distributed=True": distributed,
    }
    given = next((words for words, is_given in other.items() if is_given), None)
    if given is not None:
        raise InputError(
            f"{asked} is for a model that is one graph, in one process, and this is {given}: "
            "leave one of them out"
        )
    return "model"


def _tell_of_training(model: nn.Module) -> None:
    """Warn of modules that the float model has in training mode on purpose: a graph is that of
    evaluation.
    """
    trained = trained_inside(model)
    if trained:
        shown = ", ".join(map(repr, trained[:3])) + (", ..." if len(trained) > 3 else "")
        warn_user(
            f"{shown} is in training mode, in a model that is in evaluation mode: the quantized "
            "model drops nothing there, and normalizes with the running statistics. If that was "
            "not meant, call model.eval()"
        )


def _refuse_quantized(model: nn.Module) -> None:
    """Raise for a model of which a part is quantized.

    Raises:
        PlanError: it names the part.
    """
    for path, module in model.named_modules():
        if isinstance(module, QuantizedModel | QuantizedModule):
            where = f", at {path!r}" if path else ""
            raise PlanError(f"the model is quantized already{where}: start from the float model")


def _refuse_for_modules(**given: object) -> None:
    """Raise for settings that would change nothing where there is no graph.

    Raises:
        InputError: one of them is given.
    """
    for name, value in given.items():
        if value:
            raise InputError(
                f'{name}= is for graphs, and scope="modules" makes none: leave it out, or take '
                'scope="regions"'
            )
