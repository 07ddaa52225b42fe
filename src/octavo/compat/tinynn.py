"""TinyNeuralNetwork's quantizers: one object, ``quantize()``, run it on data, ``convert()``.

They stand for ``tinynn.graph.quantization.quantizer``. No source of a rewritten model is generated
or executed: the model is captured as it is. What a config may say stands in the tables below.

>>> quantizer = PostQuantizer(model, torch.rand(1, 3, 224, 224))  # doctest: +SKIP
>>> ready = quantizer.quantize()  # doctest: +SKIP
>>> for images, _ in loader: ready(images)  # doctest: +SKIP
>>> int8 = quantizer.convert(ready)  # doctest: +SKIP
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from octavo.atomic import replacing
from octavo.compat.quantization.missing import NotShared
from octavo.compat.quantization.prepared import Preparation
from octavo.compat.quantization.qconfig import native
from octavo.compat.quantization.quantize import convert, prepared, quantize_dynamic, trained
from octavo.compat.quantization.rules import MappingRules
from octavo.compat.quantization.trained import Training
from octavo.errors import PlanError
from octavo.observers import Entropy, Histogram, MovingAverageMinMax, Observer
from octavo.plan import Plan
from octavo.qconfig import QConfig, QConfigMapping, QSpec
from octavo.scheme import Scheme
from octavo.targets import dynamic_qconfig, static_qconfig

__all__ = ["DynamicQuantizer", "PostQuantizer", "QATQuantizer"]


@dataclass(frozen=True)
class _Backend:
    """Attributes: the target; the integers of activations without a zero point."""

    target: str
    symmetric: str


_BACKENDS = {
    "qnnpack": _Backend("arm", "uint8"),
    "fbgemm": _Backend("x86-avx2", "uint8"),
    "onnx": _Backend("onnxruntime", "int8"),
    "tensorrt": _Backend("tensorrt", "int8"),
}
_ALGORITHMS: Mapping[str, Observer] = {"l2": Histogram(), "kl": Entropy()}
_ACTIONS = ("enable", "disable", "rewrite")
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)  # TinyNN leaves them float unless it is told otherwise

# Keys that are honoured, with their defaults.
_HONOURED: Mapping[str, Any] = {
    "asymmetric": True,  # activations have a zero point
    "per_tensor": True,  # a weight has one scale, else one for each output channel
    "backend": "qnnpack",
    "algorithm": "l2",  # of PostQuantizer: what the range of an activation is chosen by
    "dynamic_lstm_quant": False,
    "quantize_op_action": {},  # module class -> "enable", "disable" or "rewrite"
    "layerwise_config": {},  # layer -> whether it is quantized; "default" is for all others
    "override_qconfig_func": None,  # (path, module) -> a QConfig, or None for the usual
}

# Keys about the files and the tracer that there are none of here.
_WITHOUT_EFFECT = frozenset(
    """rewrite_graph force_overwrite remove_weights_after_load legacy_fq extra_tracer_opts
    fused_layerwise_config ignore_layerwise_config""".split()
)

# Keys whose meaning Octavo does not share: the values that ask for nothing, and the native way.
_REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "inplace": (
        (False,),
        "the model is never changed: go on with what quantize() returns",
    ),
    "fuse_only": (
        (False,),
        "octavo.capture(model, dummy_input) is the fused float graph",
    ),
    "rounding_mode": (
        ("pytorch",),
        "Octavo rounds half to even, as torch does",
    ),
    "is_input_quantized": (
        (None, False),
        "octavo.quantize(model, calibration=loader, input_scale=, input_mean=, input_std=) takes "
        "uint8 images",
    ),
    "quantized_input_stats": (
        (None,),
        "give the input a range: octavo.QConfig(octavo.QSpec(octavo.Scheme('uint8'), "
        "octavo.FixedRange(low, high)), weight) for octavo.quantize",
    ),
    "quantized_op_stats": (
        (None,),
        "fixed ranges of operators are the target's: octavo.quantize(..., target='edge')",
    ),
    "set_quantizable_op_stats": (
        (False,),
        "fixed ranges of operators are the target's: octavo.quantize(..., target='edge')",
    ),
    "disable_requantization_for_cat": (
        (None, True),
        "in Octavo all that a concatenation reads shares its scale",
    ),
}

# Methods of TinyNN's that there are none of here.
_METHODS: Mapping[str, str] = {
    "error_analysis": "octavo.layer_errors(model, q, data) tells each layer's error",
    "restore_to_original": "the float model is as it was: quantize() works on a copy",
    "optimize_conv_bn_fusion": "batch norms are folded when the model is captured",
    "prepare_onnx_export": "octavo.export_onnx(quantizer.convert(ready).octavo_model, path)",
    "freeze_weights": "weights are rounded once, in convert",
}


class _Quantizer:
    """What all three have.

    Args:
        model: any module that ``torch.export`` takes; it is left as it was.
        dummy_input: a tensor, a tuple or list of arguments, or a dict of keyword arguments.
        work_dir: a folder for ``<model>_q_plan.json``, `octavo.Plan` as JSON: what is quantized,
            how, and why. Nothing is written without it, and nothing is ever read from it.
        config: see ``_HONOURED``, ``_WITHOUT_EFFECT`` and ``_REFUSED``.

    Raises:
        PlanError: the config asks for something that Octavo does not share.
    """

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Any,
        work_dir: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
        self.model: nn.Module = model.module if parallel else model
        self.dummy_input = dummy_input
        self.work_dir = work_dir
        _check(config or {})
        self.config = {**_HONOURED, **(config or {})}

    def __getattr__(self, name: str) -> Any:
        if name in _METHODS:
            raise NotShared(f"octavo.compat.tinynn has no {name}: {_METHODS[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def backend(self) -> str:
        """TinyNN's name of the place where the model will run."""
        return str(self.config["backend"])

    def quantize(self) -> nn.Module:
        """The model, ready for data."""
        raise NotImplementedError

    def convert(self, q_model: nn.Module, backend: str = "tflite") -> nn.Module:
        """The int8 model.

        Args:
            q_model: from `quantize`, after it has seen data.
            backend: ``"tflite"`` and ``"pytorch"`` mean the same here.

        Raises:
            PlanError: the model is not from `quantize`.
        """
        if backend not in ("tflite", "pytorch"):
            raise PlanError(
                f"backend is {backend!r}; convert(q_model) gives a model that runs in int8, and "
                "octavo.export_onnx writes its octavo_model for other runtimes"
            )
        return convert(q_model)


class QATQuantizer(_Quantizer):
    """Quantization-aware training: train what `quantize` returns, then `convert` it.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> quantizer = QATQuantizer(net, torch.rand(2, 3, 8, 8), config={"per_tensor": False})
        >>> training = quantizer.quantize()
        >>> optimizer = torch.optim.SGD(training.parameters(), 0.01)
        >>> training(torch.rand(4, 3, 8, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> quantizer.convert(training)(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 4, 6, 6])
    """

    def quantize(self) -> nn.Module:
        """A copy of the model in training mode, whose values are rounded as they will be.

        Raises:
            CaptureError: the model cannot be exported.
            PlanError: the config does not fit the model.
        """
        rules = _rules(self, MovingAverageMinMax(), training=True)
        return self._captured(trained(copy.deepcopy(self.model).train(), rules))

    def _captured(self, made: Any) -> nn.Module:
        state: Training | Preparation = made._octavo
        state.capture(*_arguments(self.dummy_input))
        plan = _plan_of(state)
        if self.work_dir is not None and plan is not None:
            name = f"{type(self.model).__name__.lower()}_q_plan.json"
            with replacing(Path(self.work_dir, name)) as file:
                file.write_text(plan.to_json(), encoding="utf-8")
        found: nn.Module = made
        return found


class PostQuantizer(QATQuantizer):
    """Post-training quantization: call what `quantize` returns on data, then `convert` it."""

    def quantize(self) -> nn.Module:
        """A copy of the model in evaluation mode, which observes what it is called on.

        Raises:
            CaptureError: the model cannot be exported.
            PlanError: the config does not fit the model.
        """
        algorithm = self.config["algorithm"]
        if algorithm not in _ALGORITHMS:
            raise PlanError(
                f"algorithm is {algorithm!r}; one of {[*_ALGORITHMS]}, or octavo.quantize with an "
                "observer of octavo.observers"
            )
        rules = _rules(self, _ALGORITHMS[algorithm], training=False)
        return self._captured(prepared(copy.deepcopy(self.model).eval(), rules))


class DynamicQuantizer(_Quantizer):
    """Dynamic quantization: `quantize` returns the int8 model, which finds scales at each call."""

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Any,
        work_dir: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, dummy_input, work_dir, config)
        given = config or {}
        if given.get("asymmetric", False) or not given.get("per_tensor", True):
            raise PlanError(
                "DynamicQuantizer takes asymmetric=False and per_tensor=True alone; for other "
                "schemes octavo.quantize(model, dummy_input, qconfig=octavo.dynamic_qconfig())"
            )

    def quantize(self) -> nn.Module:
        """A copy of the model whose linear and recurrent layers hold integers."""
        return quantize_dynamic(copy.deepcopy(self.model).eval(), inplace=True)

    def convert(self, q_model: nn.Module, backend: str = "tflite") -> nn.Module:
        """The model itself: it runs in int8 already."""
        return q_model


def _check(config: Mapping[str, Any]) -> None:
    """Refuse what Octavo does not share."""
    known = {*_HONOURED, *_WITHOUT_EFFECT, *_REFUSED}
    for key, value in config.items():
        if key not in known:
            raise PlanError(
                f"the config has an unknown key {key!r}; it may have {sorted(_HONOURED)}, for all "
                "else use octavo.quantize or octavo.prepare_qat with a QConfigMapping"
            )
        if key in _REFUSED and not any(value is v or value == v for v in _REFUSED[key][0]):
            raise PlanError(f"Octavo does not share {key}={value!r}: {_REFUSED[key][1]}")
    backend = config.get("backend", _HONOURED["backend"])
    if backend not in _BACKENDS:
        raise PlanError(
            f"backend is {backend!r}; one of {sorted(_BACKENDS)}, or octavo.quantize with target="
        )
    if backend == "tensorrt" and config.get("asymmetric", True):
        raise PlanError("TensorRT has no zero points: say config={'asymmetric': False}")
    for kind, action in config.get("quantize_op_action", {}).items():
        if action not in _ACTIONS:
            raise PlanError(f"quantize_op_action of {kind} is {action!r}; one of {_ACTIONS}")


def _rules(quantizer: _Quantizer, observer: Observer, training: bool) -> MappingRules:
    """The config as Octavo's rules."""
    config, model = quantizer.config, quantizer.model
    backend = _BACKENDS[quantizer.backend]
    mapping = QConfigMapping().set_global(_qconfig(config, backend, observer))
    for kind in _RECURRENT:
        mapping.set_object_type(kind, None)
    if config["dynamic_lstm_quant"]:
        mapping.set_object_type(nn.LSTM, dynamic_qconfig(backend.target))
    usual = mapping.rules[0].qconfig
    for kind, action in config["quantize_op_action"].items():
        mapping.set_object_type(kind, None if action == "disable" else usual)
    _by_layer(mapping, config["layerwise_config"], model, usual)
    override: Callable[[str, nn.Module], Any] | None = config["override_qconfig_func"]
    for path, module in model.named_modules() if override is not None else ():
        assert override is not None
        own = override(path, module)
        if own is not None:
            mapping.set_module_name(path, native(own, backend.target, training))
    return MappingRules(mapping, backend.target)


def _qconfig(config: Mapping[str, Any], backend: _Backend, observer: Observer) -> QConfig:
    default = static_qconfig(backend.target)
    activation = Scheme("uint8") if config["asymmetric"] else Scheme(backend.symmetric, True)
    weight = default.weight
    axis = None if config["per_tensor"] else 0
    weight = replace(weight, scheme=replace(weight.scheme, channel_axis=axis))
    return QConfig(QSpec(activation, observer), weight)


def _by_layer(
    mapping: QConfigMapping, layers: Mapping[str, bool], model: nn.Module, usual: QConfig | None
) -> None:
    """TinyNN writes a layer's path with underscores for dots; either is read."""
    paths = {path.replace(".", "_"): path for path, _ in model.named_modules()}
    if not layers.get("default", True):
        mapping.set_global(None)
    for name, quantized in layers.items():
        if name == "default":
            continue
        path = paths.get(name.replace(".", "_"))
        if path is None:
            raise PlanError(
                f"layerwise_config names {name!r}, which is no module of the model; its modules "
                "are those of model.named_modules()"
            )
        mapping.set_module_name(path, usual if quantized else None)


def _arguments(dummy_input: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if isinstance(dummy_input, Mapping):
        return (), dummy_input
    return ((dummy_input,) if isinstance(dummy_input, Tensor) else tuple(dummy_input)), {}


def _plan_of(state: Training | Preparation) -> Plan | None:
    """``None`` where nothing is quantized."""
    if isinstance(state, Training):
        return None if state.qat is None else state.qat.plan
    return None if state.calibration is None else state.calibration.plan


def __getattr__(name: str) -> Any:
    if name == "BF16Quantizer":
        raise NotShared("octavo.compat.tinynn has no BF16Quantizer: use model.bfloat16()")
    if name == "DeQuantizer":
        raise NotShared("octavo.compat.tinynn has no DeQuantizer: the float model is as it was")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
