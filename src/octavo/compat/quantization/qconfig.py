"""`QConfig`: which observers, and the `octavo.QConfig` that they come to."""

from __future__ import annotations

import warnings
from collections import namedtuple
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

import octavo.quantization.qconfig as core
from octavo.compat.quantization.backends import DEFAULT, target_of
from octavo.compat.quantization.fake_quantize import (
    FakeQuantize,
    FakeQuantizeBase,
    FusedMovingAvgObsFakeQuantize,
    default_dynamic_fake_quant,
    default_embedding_fake_quant,
    default_embedding_fake_quant_4bit,
    default_fake_quant,
    default_fused_act_fake_quant,
    default_fused_per_channel_wt_fake_quant,
    default_fused_wt_fake_quant,
    default_per_channel_weight_fake_quant,
    default_weight_fake_quant,
)
from octavo.compat.quantization.observer import (
    EPS,
    FixedQParamsObserver,
    HistogramObserver,
    MovingAverageMinMaxObserver,
    NoopObserver,
    ObserverBase,
    PlaceholderObserver,
    UniformQuantizationObserverBase,
    default_dynamic_quant_observer,
    default_float_qparams_observer,
    default_float_qparams_observer_4bit,
    default_observer,
    default_per_channel_weight_observer,
    default_weight_observer,
)
from octavo.errors import OctavoWarning, PlanError
from octavo.numerics.observers import MinMax, MovingAverageMinMax, Observer
from octavo.numerics.scheme import Scheme
from octavo.quantization.qconfig import QSpec
from octavo.quantization.targets import target as target_named


class QConfig(namedtuple("QConfig", ["activation", "weight"])):
    """How a layer is quantized: classes (not instances) of observers or of `FakeQuantize`.

    ``backend`` is the one that it was made for, where one was named.

    Raises:
        PlanError: an instance was given.

    Example:
        >>> QConfig(HistogramObserver, default_weight_observer).backend is None
        True
    """

    backend: str | None

    def __new__(cls, activation: Any, weight: Any, backend: str | None = None) -> QConfig:
        for given in (activation, weight):
            if isinstance(given, ObserverBase | FakeQuantizeBase):
                raise PlanError(
                    f"QConfig takes observer classes, not instances: {type(given).__name__} or "
                    f"{type(given).__name__}.with_args(...)"
                )
        made = super().__new__(cls, activation, weight)
        made.backend = backend
        return made


def QConfigDynamic(activation: Any = PlaceholderObserver, weight: Any = None) -> QConfig:
    """The dynamic `QConfig` of older code; its activation was looked at by nobody."""
    return QConfig(default_dynamic_quant_observer, weight or default_weight_observer)


QConfigAny = QConfig | None

default_qconfig = QConfig(default_observer, default_weight_observer)
default_per_channel_qconfig = QConfig(default_observer, default_per_channel_weight_observer)
default_dynamic_qconfig = QConfig(default_dynamic_quant_observer, default_weight_observer)
per_channel_dynamic_qconfig = QConfig(
    default_dynamic_quant_observer, default_per_channel_weight_observer
)
float_qparams_weight_only_qconfig = QConfig(PlaceholderObserver, default_float_qparams_observer)
float_qparams_weight_only_qconfig_4bit = QConfig(
    PlaceholderObserver, default_float_qparams_observer_4bit
)
default_qat_qconfig = QConfig(default_fake_quant, default_weight_fake_quant)
default_qat_qconfig_v2 = QConfig(default_fused_act_fake_quant, default_fused_wt_fake_quant)
default_dynamic_qat_qconfig = QConfig(default_dynamic_fake_quant, default_weight_fake_quant)
default_embedding_qat_qconfig = QConfig(NoopObserver, default_embedding_fake_quant)
default_embedding_qat_qconfig_4bit = QConfig(NoopObserver, default_embedding_fake_quant_4bit)
default_weight_only_qconfig = QConfig(NoopObserver, default_weight_fake_quant)

# Whether the backend's default leaves a bit of the activations, and has a scale for each channel.
_DEFAULTS = {
    "fbgemm": (True, True),
    "x86": (True, True),
    "onednn": (False, True),
    "qnnpack": (False, False),
}


def get_default_qconfig(backend: str = DEFAULT, version: int = 0) -> QConfig:
    """The default for static quantization.

    Args:
        backend: ``"x86"``, ``"fbgemm"``, ``"onednn"`` or ``"qnnpack"``.
        version: 0, the only one there ever was.

    Raises:
        PlanError: no such backend.
    """
    target_of(backend)
    reduced, per_channel = _DEFAULTS[backend]
    weight = default_per_channel_weight_observer if per_channel else default_weight_observer
    return QConfig(HistogramObserver.with_args(reduce_range=reduced), weight, backend)


def get_default_qat_qconfig(backend: str = DEFAULT, version: int = 1) -> QConfig:
    """The default for quantization-aware training.

    Args:
        backend: as for `get_default_qconfig`.
        version: 0 for `FakeQuantize`, 1 for the fused one; they do the same.

    Raises:
        PlanError: no such backend.
    """
    target_of(backend)
    reduced, per_channel = _DEFAULTS[backend]
    kind: Any = FakeQuantize if version == 0 else FusedMovingAvgObsFakeQuantize
    activation = kind.with_args(
        observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255, reduce_range=reduced
    )
    weights = {
        (0, True): default_per_channel_weight_fake_quant,
        (0, False): default_weight_fake_quant,
        (1, True): default_fused_per_channel_wt_fake_quant,
        (1, False): default_fused_wt_fake_quant,
    }
    return QConfig(activation, weights[min(version, 1), per_channel], backend)


def qconfig_equals(one: QConfig | None, other: QConfig | None) -> bool:
    """Whether two qconfigs mean the same."""
    return repr(one) == repr(other)


def common_target(qconfigs: Iterable[Any]) -> str:
    """The target that qconfigs were made for.

    Raises:
        PlanError: they were made for several.
    """
    backends = {q.backend for q in qconfigs if isinstance(q, QConfig) and q.backend is not None}
    targets = {target_of(backend) for backend in backends or {DEFAULT}}
    if len(targets) > 1:
        raise PlanError(f"qconfigs for {sorted(backends)} in one model: take one backend for all")
    return targets.pop()


def native(qconfig: Any, target: str, training: bool = False) -> core.QConfig | None:
    """What Octavo makes of a qconfig.

    Args:
        qconfig: a `QConfig`, an `octavo.QConfig`, or ``None`` for float.
        target: name of the target.
        training: whether its observers have to follow a training.

    Raises:
        PlanError: Octavo does not share its meaning.
    """
    if qconfig is None or isinstance(qconfig, core.QConfig):
        return qconfig
    if not isinstance(qconfig, tuple) or len(qconfig) != 2:
        raise PlanError(f"a qconfig is a {type(qconfig).__name__}; give a QConfig, or None")
    activation, weight = (_observer(made) for made in qconfig)
    weight_spec = _weight(weight, target)
    return core.QConfig(_activation(activation, weight_spec, training), weight_spec)


def _observer(kind: Any) -> Any:
    """An instance, its rounding taken off."""
    observer = kind()
    rounding = isinstance(observer, FakeQuantizeBase)
    inner = observer.activation_post_process if rounding else observer
    for one in (observer, inner):
        _refuse_own_code(one)
    if getattr(inner, "eps", EPS) != EPS:
        warnings.warn(
            f"eps={inner.eps} of {type(inner).__name__} is used by its calculate_qparams alone: "
            "the scales of a model have no such floor",
            OctavoWarning,
            stacklevel=2,
        )
    return inner


def _refuse_own_code(observer: Any) -> None:
    """Raise for what no graph would run: an observer of torch.ao's, or one with its own methods."""
    for kind in type(observer).__mro__:
        if kind.__module__.startswith("octavo.") or kind is nn.Identity:
            return
        if kind.__module__.startswith("torch.ao."):
            raise PlanError(
                f"{kind.__name__} is torch.ao's: import it from octavo.compat.quantization"
            )
        if {"forward", "calculate_qparams"} & set(vars(kind)):
            raise PlanError(
                f"the forward of {kind.__name__} would not be run: derive from the observers of "
                "octavo.observers, and give octavo.QConfig(octavo.QSpec(scheme, observer), weight)"
            )


def _weight(observer: Any, target: str) -> QSpec:
    if not isinstance(observer, UniformQuantizationObserverBase):
        raise PlanError(
            f"the weight of a QConfig is {type(observer).__name__}, which finds no range: take "
            "default_weight_observer; or keep the layer float with qconfig = None"
        )
    scheme, native = observer.scheme, observer.native
    # A weight is seen once, or at each step anew: there is nothing to take an average of.
    native = MinMax() if isinstance(native, MovingAverageMinMax) else native
    if isinstance(native, MinMax) and scheme.symmetric and scheme.dtype == "int8":
        default = target_named(target).qconfig.weight
        axis = scheme.channel_axis
        return replace(default, scheme=replace(default.scheme, channel_axis=axis))
    return QSpec(scheme, native)


def _activation(observer: Any, weight: QSpec, training: bool) -> QSpec | None:
    if isinstance(observer, PlaceholderObserver):
        if observer.is_dynamic:
            return QSpec(observer.scheme)
        if "float32" in str(observer.dtype):
            return None
        raise PlanError(
            f"{observer.dtype} for an activation is not an integer type: for half precision use "
            "model.half() or model.bfloat16(); for dynamic int8 default_dynamic_qconfig"
        )
    if isinstance(observer, nn.Identity):
        return None  # only the weight is quantized
    if not isinstance(observer, UniformQuantizationObserverBase | FixedQParamsObserver):
        raise PlanError(
            f"the activation of a QConfig is {type(observer).__name__}, which is not an observer"
        )
    if observer.scheme.channel_axis is not None:
        raise PlanError(
            f"{type(observer).__name__} for an activation: it has one scale for the whole tensor, "
            "take MinMaxObserver or another per tensor"
        )
    if observer.is_dynamic:
        return QSpec(_all_bits(observer.scheme, weight))
    return QSpec(_all_bits(observer.scheme, weight), _following(observer, training))


def _all_bits(scheme: Scheme, weight: QSpec) -> Scheme:
    """Activations leave a bit so that pairs of products fit into int16; weights that Octavo has
    chosen for the target fit already.
    """
    leaves_one = (scheme.qmin, scheme.qmax) == (0, 127)
    if leaves_one and weight.scheme.symmetric and weight.scheme.narrow_range:
        return Scheme("uint8", scheme.symmetric)
    return scheme


def _following(observer: Any, training: bool) -> Observer:
    native: Observer = observer.native
    if not training or not isinstance(observer, HistogramObserver):
        return native
    warnings.warn(
        "HistogramObserver cannot follow training: activations are rounded to a moving average of "
        "their extremes, as get_default_qat_qconfig asks for",
        OctavoWarning,
        stacklevel=2,
    )
    return MovingAverageMinMax()
