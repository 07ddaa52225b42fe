"""Observers as modules: they look at what passes, and tell scale and zero point.

Behind each stands one of `octavo.observers`, which keeps the range.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from octavo.compat.quantization.torch_types import (
    HALF,
    NARROW,
    PER_CHANNEL_AFFINE,
    PER_CHANNEL_FLOAT_QPARAMS,
    PER_CHANNEL_SYMMETRIC,
    PER_TENSOR_AFFINE,
    PER_TENSOR_SYMMETRIC,
    QINT8,
    QUINT4X2,
    QUINT8,
    name_of,
    scheme_of,
)
from octavo.errors import OctavoWarning, PlanError
from octavo.numerics.affine import QParams, qparams_of_range
from octavo.numerics.observers import (
    Bounds,
    FixedRange,
    Histogram,
    MinMax,
    MovingAverageMinMax,
    Observer,
)
from octavo.numerics.scheme import Scheme

EPS = torch.finfo(torch.float32).eps


class Partial:
    """A class with some of its arguments, to be called later: what ``with_args`` returns."""

    def __init__(self, function: Callable[..., Any], **arguments: Any) -> None:
        self.partial = functools.partial(function, **arguments)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.partial(*args, **kwargs)

    def with_args(self, **arguments: Any) -> Partial:
        """The same with more arguments."""
        return Partial(self.partial, **arguments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Partial) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"{self.partial!r}{{}}"


class ObserverBase(nn.Module):
    """What all observers have: a dtype, and ``with_args``."""

    def __init__(self, dtype: Any, is_dynamic: bool = False) -> None:
        super().__init__()
        self.dtype, self.is_dynamic = dtype, is_dynamic

    @classmethod
    def with_args(cls, **arguments: Any) -> Partial:
        """The class with other defaults, for a `QConfig`.

        Example:
            >>> MinMaxObserver.with_args(reduce_range=True)().quant_max
            127
        """
        return Partial(cls, **arguments)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point.

        Raises:
            PlanError: the observer keeps no range.
        """
        raise PlanError(f"{type(self).__name__} keeps no range: take MinMaxObserver or another")


class UniformQuantizationObserverBase(ObserverBase):
    """An observer of a range.

    Args:
        dtype: ``torch.quint8`` or ``torch.qint8``.
        qscheme: ``torch.per_tensor_affine`` and its kin.
        reduce_range: one bit less.
        quant_min, quant_max: own ends of the integers, where a type of Octavo's has them.
        factory_kwargs: not looked at.
        eps: the smallest scale.
        is_dynamic: the range is each call's own.

    Raises:
        PlanError: Octavo has no such scheme.
    """

    def __init__(
        self,
        dtype: Any = QUINT8,
        qscheme: Any = PER_TENSOR_AFFINE,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        factory_kwargs: Any = None,
        eps: float = EPS,
        is_dynamic: bool = False,
        ch_axis: int = 0,
    ) -> None:
        super().__init__(dtype, is_dynamic)
        self.qscheme, self.reduce_range, self.eps, self.ch_axis = (
            qscheme,
            reduce_range,
            eps,
            ch_axis,
        )
        self.scheme = scheme_of(dtype, qscheme, reduce_range, quant_min, quant_max, ch_axis)
        if (self.scheme.channel_axis is not None) != self.per_channel:
            kind = "channel" if self.per_channel else "tensor"
            raise PlanError(f"{type(self).__name__} is per {kind}, its qscheme is {qscheme}")
        self.state: Any = None

    per_channel = False

    @property
    def native(self) -> Observer:
        """Octavo's observer of the same range."""
        raise NotImplementedError

    @property
    def quant_min(self) -> int:
        return self.scheme.qmin

    @property
    def quant_max(self) -> int:
        return self.scheme.qmax

    @property
    def bounds(self) -> Bounds:
        """What was seen; from infinity to minus infinity before."""
        if self.state is None:
            nothing = torch.tensor(float("inf"))
            return Bounds(nothing, -nothing, 0)
        return self.native.bounds(self.state, self.scheme)

    @property
    def min_val(self) -> Tensor:
        return self.bounds.low

    @property
    def max_val(self) -> Tensor:
        return self.bounds.high

    def forward(self, x: Tensor) -> Tensor:
        """Observe ``x``, and return it."""
        if x.numel():
            self.state = self.native.update(self.state, x, self.scheme.channel_axis)
        return x

    def reset_min_max_vals(self) -> None:
        """Forget what was seen."""
        self.state = None

    def qparams(self) -> QParams:
        """Scale and zero point, of shape ``[]`` or ``[channels]``."""
        bounds = self.bounds
        low, high = bounds.low, bounds.high
        qparams = qparams_of_range(low, high, self.scheme)
        scale, zero_point = qparams.scale.clamp(min=self.eps), qparams.zero_point
        if not self.scheme.symmetric:
            first = self.quant_min - torch.round(low.clamp(max=0.0) / scale)
            zero_point = first.clamp(self.quant_min, self.quant_max).to(torch.int32)
        return QParams(scale, zero_point, self.scheme)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point, of shape ``[1]`` or ``[channels]``."""
        if self.state is None:
            warnings.warn(
                f"{type(self).__name__} has seen nothing: its scale is 1",
                OctavoWarning,
                stacklevel=2,
            )
            return torch.tensor([1.0]), torch.tensor([0])
        qparams = self.qparams()
        zero_point = qparams.zero_point.long() if self.scheme.symmetric else qparams.zero_point
        return qparams.scale.reshape(-1), zero_point.reshape(-1)

    def extra_repr(self) -> str:
        low, high = (b.item() if not b.dim() else b for b in (self.min_val, self.max_val))
        return f"min_val={low}, max_val={high}"


class MinMaxObserver(UniformQuantizationObserverBase):
    """The lowest and the highest value ever seen."""

    @property
    def native(self) -> Observer:
        return MinMax()


class MovingAverageMinMaxObserver(UniformQuantizationObserverBase):
    """The exponential average of each batch's extremes."""

    def __init__(self, averaging_constant: float = 0.01, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.averaging_constant = averaging_constant

    @property
    def native(self) -> Observer:
        return MovingAverageMinMax(self.averaging_constant)


class PerChannelMinMaxObserver(UniformQuantizationObserverBase):
    """The lowest and the highest value of each channel."""

    per_channel = True

    def __init__(
        self,
        ch_axis: int = 0,
        dtype: Any = QUINT8,
        qscheme: Any = PER_CHANNEL_AFFINE,
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype, qscheme, ch_axis=ch_axis, **kwargs)

    @property
    def native(self) -> Observer:
        return MinMax()


class MovingAveragePerChannelMinMaxObserver(PerChannelMinMaxObserver):
    """The exponential average of each channel's extremes."""

    def __init__(self, averaging_constant: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.averaging_constant = averaging_constant

    @property
    def native(self) -> Observer:
        return MovingAverageMinMax(self.averaging_constant)


class HistogramObserver(UniformQuantizationObserverBase):
    """The range of least squared error; found by a wider search than torch.ao's."""

    def __init__(
        self, bins: int = 2048, dtype: Any = QUINT8, qscheme: Any = PER_TENSOR_AFFINE, **kwargs: Any
    ) -> None:
        kwargs.pop("upsample_rate", None)  # of torch.ao's way of joining histograms
        super().__init__(dtype, qscheme, **kwargs)
        self.bins = bins

    @property
    def native(self) -> Observer:
        return Histogram(bins=self.bins)


class FixedQParamsObserver(ObserverBase):
    """A scale and a zero point that are known beforehand."""

    def __init__(
        self,
        scale: float,
        zero_point: int,
        dtype: Any = QUINT8,
        qscheme: Any = PER_TENSOR_AFFINE,
        quant_min: int = 0,
        quant_max: int = 255,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(dtype, is_dynamic)
        if is_dynamic or name_of(qscheme) not in ("per_tensor_affine", "per_tensor_symmetric"):
            raise PlanError("fixed qparams are for a whole tensor, and cannot be dynamic")
        self.scheme = scheme_of(dtype, PER_TENSOR_AFFINE, False, quant_min, quant_max)
        self.scale, self.zero_point = torch.tensor([scale]), torch.tensor([zero_point])

    @property
    def native(self) -> Observer:
        """Octavo's observer of the same range."""
        scale, zero_point = self.scale.item(), int(self.zero_point.item())
        ends = (self.scheme.qmin - zero_point, self.scheme.qmax - zero_point)
        return FixedRange(ends[0] * scale, ends[1] * scale)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself."""
        return x

    def qparams(self) -> QParams:
        """Scale and zero point, of shape ``[]``."""
        return QParams(self.scale[0], self.zero_point[0].to(torch.int32), self.scheme)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        return self.scale, self.zero_point


class PlaceholderObserver(ObserverBase):
    """Keeps a dtype, no range: for dynamic quantization, and for what stays float."""

    def __init__(
        self,
        dtype: Any = torch.float32,
        custom_op_name: str = "",
        compute_dtype: Any = None,
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: Any = None,
        eps: float | None = None,
        is_dynamic: bool = False,
    ) -> None:
        if compute_dtype is not None:  # how older code says that it is dynamic
            dtype, is_dynamic = compute_dtype, True
        super().__init__(dtype, is_dynamic)
        self.qscheme = PER_TENSOR_AFFINE if qscheme is None else qscheme
        self._range = quant_min, quant_max

    @property
    def scheme(self) -> Scheme:
        """The scheme of a dynamic activation."""
        return scheme_of(self.dtype, self.qscheme, False, *self._range)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself."""
        return x

    def extra_repr(self) -> str:
        return f"dtype={self.dtype}, is_dynamic={self.is_dynamic}"


class NoopObserver(PlaceholderObserver):
    """Keeps nothing: the tensor stays float."""

    def __init__(self, dtype: Any = torch.float32, custom_op_name: str = "") -> None:
        super().__init__(dtype, custom_op_name)


# The table of defaults: weights with one scale and with one for each channel, tables, known scales.
_WEIGHT: dict[str, Any] = {"dtype": QINT8, "qscheme": PER_TENSOR_SYMMETRIC}
_CHANNELS: dict[str, Any] = {"dtype": QINT8, "qscheme": PER_CHANNEL_SYMMETRIC}
_TABLE: dict[str, Any] = {"qscheme": PER_CHANNEL_FLOAT_QPARAMS, "ch_axis": 0}
_KNOWN: dict[str, Any] = {"dtype": QUINT8, "quant_min": 0, "quant_max": 255}
_one_scale, _of_channels = MinMaxObserver.with_args, PerChannelMinMaxObserver.with_args
_fixed = FixedQParamsObserver.with_args

default_observer = _one_scale(**HALF)
default_histogram_observer = HistogramObserver.with_args(**HALF)
default_placeholder_observer = PlaceholderObserver
default_dynamic_quant_observer = PlaceholderObserver.with_args(**_KNOWN, is_dynamic=True)
default_weight_observer = _one_scale(**_WEIGHT)
weight_observer_range_neg_127_to_127 = _one_scale(**_WEIGHT, **NARROW)
default_per_channel_weight_observer = _of_channels(**_CHANNELS)
per_channel_weight_observer_range_neg_127_to_127 = _of_channels(**_CHANNELS, **NARROW)
default_float_qparams_observer = _of_channels(dtype=QUINT8, **_TABLE)
default_float_qparams_observer_4bit = _of_channels(dtype=QUINT4X2, **_TABLE)
default_symmetric_fixed_qparams_observer = _fixed(scale=2.0 / 256.0, zero_point=128, **_KNOWN)
default_affine_fixed_qparams_observer = _fixed(scale=1.0 / 256.0, zero_point=0, **_KNOWN)
default_fixed_qparams_range_neg1to1_observer = default_symmetric_fixed_qparams_observer
default_fixed_qparams_range_0to1_observer = default_affine_fixed_qparams_observer
