"""What a config of TinyNeuralNetwork's quantizers says, as Octavo's rules.

Keys whose meaning Octavo shares are honoured; those about generated files have no effect; any other
is an error that names the native way.

Tested in tests/compat/test_tinynn.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from octavo.compat.quantization.qconfig import native
from octavo.compat.quantization.rules import MappingRules
from octavo.errors import PlanError
from octavo.numerics.observers import Entropy, Histogram, MovingAverageMinMax, Observer
from octavo.numerics.scheme import Scheme
from octavo.quantization.qconfig import QConfig, QConfigMapping, QSpec
from octavo.quantization.targets import dynamic_qconfig, static_qconfig


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
    "quantize_op_action": {},  # module class or operator -> "enable", "disable" or "rewrite"
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


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the defaults of what it leaves out.

    Raises:
        PlanError: it asks for something that Octavo does not share.
    """
    known = {*_HONOURED, *_WITHOUT_EFFECT, *_REFUSED}
    for key, value in config.items():
        if key not in known:
            raise PlanError(
                f"the config has an unknown key {key!r}; it may have {sorted(_HONOURED)}, for all "
                "else use octavo.quantize or octavo.prepare_qat with a QConfigMapping"
            )
        if key in _REFUSED and not any(value is v or value == v for v in _REFUSED[key][0]):
            raise PlanError(f"octavo.compat does not take {key}={value!r}: {_REFUSED[key][1]}")
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
    if config.get("algorithm", "l2") not in _ALGORITHMS:
        raise PlanError(
            f"algorithm is {config['algorithm']!r}; one of {[*_ALGORITHMS]}, or octavo.quantize "
            "with an observer of octavo.observers"
        )
    return {**_HONOURED, **config}


def rules_of(config: Mapping[str, Any], model: nn.Module, training: bool) -> MappingRules:
    """What is quantized, and how.

    Args:
        config: from `completed`.
        model: what it is for.
        training: whether ranges have to follow a training.

    Raises:
        PlanError: it names a layer that the model does not have.
    """
    backend = _BACKENDS[config["backend"]]
    observer = MovingAverageMinMax() if training else _ALGORITHMS[config["algorithm"]]
    usual = _qconfig(config, backend, observer)
    mapping = QConfigMapping().set_global(usual)
    kinds: dict[Any, QConfig | None] = dict.fromkeys(_RECURRENT)
    if config["dynamic_lstm_quant"]:
        kinds[nn.LSTM] = dynamic_qconfig(backend.target)
    for kind, action in config["quantize_op_action"].items():
        kinds[kind] = None if action == "disable" else usual
        if not isinstance(kind, type):
            mapping.set_object_type(kind, kinds[kind])
    for path, module in model.named_modules():
        if type(module) in kinds and path:
            mapping.set_module_name(path, kinds[type(module)])
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
                f"layerwise_config names {name!r}, which is not a module of the model; "
                "model.named_modules() lists them"
            )
        mapping.set_module_name(path, usual if quantized else None)
