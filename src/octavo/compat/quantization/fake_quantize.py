"""`FakeQuantize`: an observer, and the rounding that its range stands for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from octavo.compat.quantization.observer import (
    FixedQParamsObserver,
    HistogramObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    Partial,
    default_fixed_qparams_range_0to1_observer,
    default_fixed_qparams_range_neg1to1_observer,
)
from octavo.compat.quantization.torch_types import (
    INT8,
    NARROW,
    PER_CHANNEL_FLOAT_QPARAMS,
    PER_CHANNEL_SYMMETRIC,
    PER_TENSOR_AFFINE,
    PER_TENSOR_SYMMETRIC,
    QUINT4X2,
    UINT8,
)
from octavo.numerics.affine import QParams
from octavo.qat.rounding import fake_quantize


class FakeQuantizeBase(nn.Module):
    """What all of them have: two switches, kept as buffers."""

    fake_quant_enabled: Tensor
    observer_enabled: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fake_quant_enabled", torch.tensor([1], dtype=torch.uint8))
        self.register_buffer("observer_enabled", torch.tensor([1], dtype=torch.uint8))

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Round, or let values through."""
        self.fake_quant_enabled[0] = int(enabled)

    def enable_observer(self, enabled: bool = True) -> None:
        """Observe, or keep the range."""
        self.observer_enabled[0] = int(enabled)

    def disable_fake_quant(self) -> None:
        self.enable_fake_quant(False)

    def disable_observer(self) -> None:
        self.enable_observer(False)

    @classmethod
    def with_args(cls, **arguments: Any) -> Partial:
        """The class with other defaults, for a `QConfig`."""
        return Partial(cls, **arguments)


class FakeQuantize(FakeQuantizeBase):
    """Rounds to what the integers can hold; the gradient passes inside of the range.

    Args:
        observer: an observer class, or one ``with_args``.
        quant_min, quant_max: the ends of the integers; those of the dtype without.
        is_dynamic: the range is each call's own.
        observer_kwargs: what else the observer takes.

    Example:
        >>> rounding = FakeQuantize()
        >>> rounding(torch.tensor([0.0, 0.3, 1.0])).unique().numel()
        3
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        observer: Any = MovingAverageMinMaxObserver,
        quant_min: int | None = None,
        quant_max: int | None = None,
        is_dynamic: bool = False,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__()
        ends = {"quant_min": quant_min, "quant_max": quant_max}
        given = {key: end for key, end in ends.items() if end is not None}
        if is_dynamic:
            given["is_dynamic"] = True
        self.activation_post_process = observer(**given, **observer_kwargs)
        self.is_dynamic = is_dynamic
        self.register_buffer("scale", torch.tensor([1.0]))
        self.register_buffer("zero_point", torch.tensor([0], dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        seen = self.activation_post_process
        if self.observer_enabled[0] == 1:
            seen(x.detach())
            scale, zero_point = seen.calculate_qparams()
            self.scale, self.zero_point = scale.to(x.device), zero_point.to(x.device)
        if self.fake_quant_enabled[0] == 0:
            return x
        shape = () if seen.scheme.channel_axis is None else (-1,)
        qparams = QParams(
            self.scale.reshape(shape), self.zero_point.to(torch.int32).reshape(shape), seen.scheme
        )
        return fake_quantize(x, qparams)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, see the observer's."""
        found: tuple[Tensor, Tensor] = self.activation_post_process.calculate_qparams()
        return found

    def extra_repr(self) -> str:
        seen = self.activation_post_process
        return (
            f"fake_quant_enabled={self.fake_quant_enabled}, "
            f"observer_enabled={self.observer_enabled}, quant_min={seen.scheme.qmin}, "
            f"quant_max={seen.scheme.qmax}, dtype={seen.dtype}, scale={self.scale}, "
            f"zero_point={self.zero_point}"
        )


class FusedMovingAvgObsFakeQuantize(FakeQuantize):
    """`FakeQuantize`; what torch.ao does in one kernel is one module here as well."""


class FixedQParamsFakeQuantize(FakeQuantize):
    """Rounds with a scale that is known beforehand."""

    def __init__(self, observer: Any) -> None:
        super().__init__(observer)
        assert isinstance(self.activation_post_process, FixedQParamsObserver)


def enable_fake_quant(mod: nn.Module) -> None:
    """Round; for ``model.apply``."""
    _switch(mod, "enable_fake_quant", True)


def disable_fake_quant(mod: nn.Module) -> None:
    """Compute in float; for ``model.apply``."""
    _switch(mod, "enable_fake_quant", False)


def enable_observer(mod: nn.Module) -> None:
    """Let ranges follow; for ``model.apply``."""
    _switch(mod, "enable_observer", True)


def disable_observer(mod: nn.Module) -> None:
    """Keep the ranges; for ``model.apply``."""
    _switch(mod, "enable_observer", False)


def _switch(mod: nn.Module, method: str, enabled: bool) -> None:
    """Of a `FakeQuantize`, or of a model from ``prepare_qat``, which has the same methods."""
    change = getattr(mod, method, None)
    if change is not None:
        change(enabled)


# The table of defaults: activations, weights with one scale and with one for each channel, tables.
_ACTIVATION: dict[str, Any] = {"observer": MovingAverageMinMaxObserver, **UINT8}
_WEIGHT: dict[str, Any] = {
    "observer": MovingAverageMinMaxObserver,
    **INT8,
    "qscheme": PER_TENSOR_SYMMETRIC,
}
_CHANNELS: dict[str, Any] = {
    "observer": MovingAveragePerChannelMinMaxObserver,
    **INT8,
    "qscheme": PER_CHANNEL_SYMMETRIC,
}
_TABLE: dict[str, Any] = {
    "observer": MovingAveragePerChannelMinMaxObserver,
    "qscheme": PER_CHANNEL_FLOAT_QPARAMS,
}
_AFFINE: dict[str, Any] = {"qscheme": PER_TENSOR_AFFINE, "reduce_range": True}
_rounding, _fused = FakeQuantize.with_args, FusedMovingAvgObsFakeQuantize.with_args
_fixed = FixedQParamsFakeQuantize.with_args

default_fake_quant = _rounding(**_ACTIVATION, **_AFFINE)
default_histogram_fake_quant = _rounding(observer=HistogramObserver, **UINT8, **_AFFINE)
default_dynamic_fake_quant = _rounding(**_ACTIVATION, is_dynamic=True, averaging_constant=1)
default_weight_fake_quant = _rounding(**_WEIGHT, reduce_range=False)
default_per_channel_weight_fake_quant = _rounding(**_CHANNELS, reduce_range=False, ch_axis=0)
default_embedding_fake_quant = _rounding(**_TABLE, **UINT8, ch_axis=0, averaging_constant=1)
default_embedding_fake_quant_4bit = _rounding(
    **_TABLE, ch_axis=0, dtype=QUINT4X2, averaging_constant=1
)
default_fused_act_fake_quant = _fused(**_ACTIVATION)
default_fused_wt_fake_quant = _fused(**_WEIGHT)
default_fused_per_channel_wt_fake_quant = _fused(**_CHANNELS)
fused_wt_fake_quant_range_neg_127_to_127 = _fused(**_WEIGHT | NARROW)
fused_per_channel_wt_fake_quant_range_neg_127_to_127 = _fused(**_CHANNELS | NARROW)
default_fixed_qparams_range_0to1_fake_quant = _fixed(
    observer=default_fixed_qparams_range_0to1_observer
)
default_fixed_qparams_range_neg1to1_fake_quant = _fixed(
    observer=default_fixed_qparams_range_neg1to1_observer
)
default_affine_fixed_qparams_fake_quant = default_fixed_qparams_range_0to1_fake_quant
default_symmetric_fixed_qparams_fake_quant = default_fixed_qparams_range_neg1to1_fake_quant
