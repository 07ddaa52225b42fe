"""The modules that round a tensor in training: with a range that is observed, or one learned.

Each has a ``name`` (the tensor's), and ``qparams`` as they are now. A value that is not a number
is noted, for `octavo.qat.model` to raise about, and never becomes part of a range.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import CalibrationError, PlanError
from octavo.numerics.affine import QParams, blocks, unchecked_qparams
from octavo.numerics.observers import Bounds, FixedRange, MinMax, MovingAverageMinMax, Observer
from octavo.numerics.observers.base import extrema
from octavo.numerics.scheme import Scheme
from octavo.qat.processes import extrema_of_all
from octavo.qat.rounding import (
    fake_quantize,
    fake_quantize_as_deployed,
    fake_quantize_learned,
)
from octavo.quantization.qconfig import QSpec

# A learned scale may not cross zero.
_SMALLEST = torch.finfo(torch.float32).tiny ** 0.5


class FakeQuantize(nn.Module):
    """Rounds a tensor, and knows what that needs.

    Attributes:
        name: of the tensor.
        scheme: its scheme.
        enabled: whether it rounds at all.
        observing: whether it looks at what it is given, in training mode.
        scales_with: whether a weight times a factor for each output channel is rounded to the
            rounded weight times the factor.
        has_nan: above 0 if a value was not a number in training, float32 ``[]``, since means over
            steps are taken of buffers; who reads it resets it.
    """

    has_nan: Tensor
    scales_with = False

    def __init__(self, name: str, scheme: Scheme) -> None:
        super().__init__()
        self.name, self.scheme = name, scheme
        self.enabled = self.observing = True
        self.register_buffer("has_nan", torch.tensor(0.0), persistent=False)

    def qparams(self) -> QParams:
        """Scale and zero point as they are now."""
        raise NotImplementedError

    def qparams_of(self, x: Tensor) -> QParams:
        """Scale and zero point to round a tensor with."""
        return self.qparams()

    @property
    def rounds(self) -> bool:
        """Whether it rounds now: an activation whose range is not known yet is left as it is in
        evaluation.
        """
        return self.enabled

    def rounded(self, x: Tensor, qparams: QParams) -> Tensor:
        """A tensor that is rounded; in evaluation as the converted model does it, to the bit."""
        return (fake_quantize if self.training else fake_quantize_as_deployed)(x, qparams)

    def extra_repr(self) -> str:
        return f"{self.name!r}, {self.scheme}"


class ObservedFakeQuantize(FakeQuantize):
    """Of an activation: the range is the observer's, of all that was seen.

    Under ``DistributedDataParallel`` every process sees the extrema of all.

    The range is ``[low / share, high / share]``, with a share of 1 once something was seen and 0
    before. So any weighted mean of the buffers of several models, and of one at several steps (EMA,
    SWA), is the mean of the ranges of those that had one.

    Args:
        name: of the tensor.
        spec: its scheme and observer.
        bounds: where the range starts; with what the first batch shows without.

    Attributes:
        low, high: the range, times the share; float32 ``[]``.
        share: float32 ``[]``.

    Raises:
        PlanError: the observer's range is not made of extrema, and no range is given.
    """

    low: Tensor
    high: Tensor
    share: Tensor

    def __init__(self, name: str, spec: QSpec, bounds: Bounds | None = None) -> None:
        super().__init__(name, spec.scheme)
        assert spec.observer is not None
        self.step = _step(name, spec.observer, bounds is not None)
        if isinstance(spec.observer, FixedRange):
            low, high = spec.observer.low, spec.observer.high
            bounds = Bounds(torch.tensor(low), torch.tensor(high))
        nothing = torch.tensor(0.0)
        known = Bounds(nothing, nothing) if bounds is None else bounds
        self.register_buffer("low", known.low.detach().to(torch.float32).clone())
        self.register_buffer("high", known.high.detach().to(torch.float32).clone())
        self.register_buffer("share", torch.tensor(float(bounds is not None)))
        self._seen = bounds is not None

    def forward(self, x: Tensor) -> Tensor:
        if self.observing and self.training:
            self._observe(x)
        return self.rounded(x, self.qparams()) if self.rounds else x

    @property
    def rounds(self) -> bool:
        return self.enabled and (self.training or self.seen)

    @property
    def seen(self) -> bool:
        """Whether something was seen."""
        if not self._seen:  # asked of the buffers only until they have one: a device waits for it
            self._seen = bool(self.share > 0)
        return self._seen

    def qparams(self) -> QParams:
        """Scale and zero point as they are now.

        Raises:
            CalibrationError: nothing has been seen.
        """
        if not self.seen:
            raise CalibrationError(unknown_range(self.name))
        return unchecked_qparams(*self._range(), self.scheme)

    def _range(self) -> tuple[Tensor, Tensor]:
        share = self.share.clamp(min=_SMALLEST)
        return self.low / share, self.high / share

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        low, high = extrema_of_all(*extrema(x, None))
        finite = torch.isfinite(high - low)
        self.has_nan += torch.isnan(low)
        known_low, known_high = self._range()
        if self.step is None:
            new_low, new_high = torch.minimum(known_low, low), torch.maximum(known_high, high)
        else:
            new_low = known_low + self.step * (low - known_low)
            new_high = known_high + self.step * (high - known_high)
        first = self.share <= 0
        self.low.copy_(torch.where(finite, torch.where(first, low, new_low), self.low))
        self.high.copy_(torch.where(finite, torch.where(first, high, new_high), self.high))
        self.share.copy_(torch.where(finite, 1.0, self.share))
        self._seen = True

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._seen = False


class WeightFakeQuantize(FakeQuantize):
    """Of a weight: the range is that of the weight as it is at each step.

    Args:
        name: of the tensor.
        spec: its scheme and observer.
    """

    def __init__(self, name: str, spec: QSpec) -> None:
        super().__init__(name, spec.scheme)
        assert spec.observer is not None
        self.observer = spec.observer
        own = spec.scheme
        self.scales_with = (
            own.channel_axis is not None
            and own.symmetric
            and own.narrow_range
            and not own.power_of_two
        )

    def forward(self, weight: Tensor) -> Tensor:
        return self.rounded(weight, self.qparams_of(weight)) if self.enabled else weight

    @torch.no_grad()
    def qparams_of(self, weight: Tensor) -> QParams:
        rows, axis = blocks(weight.to(torch.float32), self.scheme)
        bounds = self.observer.bounds(self.observer.update(None, rows, axis), self.scheme)
        qparams = unchecked_qparams(bounds.low, bounds.high, self.scheme)
        if self.training:
            self.has_nan += ~torch.isfinite(bounds.high - bounds.low).all()
        if self.scheme.group_size is None:
            return qparams
        shape = (weight.shape[0], -1)
        return replace(
            qparams,
            scale=qparams.scale.reshape(shape),
            zero_point=qparams.zero_point.reshape(shape),
        )


class LearnedFakeQuantize(FakeQuantize):
    """The scale is a parameter (Esser et al. 2020, Learned Step Size Quantization,
    arXiv:1902.08153); the zero point stays as it began.

    Args:
        name: of the tensor.
        start: where scale and zero point start.

    Attributes:
        scale: float32 ``[]``, ``[channels]`` or ``[rows, groups]``.
    """

    zero_point: Tensor

    def __init__(self, name: str, start: QParams) -> None:
        super().__init__(name, start.scheme)
        self.scale = nn.Parameter(start.scale.detach().clone())
        # A float, which a mean over steps (EMA) does not round down.
        self.register_buffer("zero_point", start.zero_point.detach().to(torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        qparams = self.qparams_of(x)
        return self.rounded(x, qparams) if self.enabled else x

    def rounded(self, x: Tensor, qparams: QParams) -> Tensor:
        values = x.numel() / max(1, self.scale.numel())
        slow = (values * max(1, self.scheme.qmax)) ** -0.5
        return fake_quantize_learned(x, qparams, slow)

    def qparams_of(self, x: Tensor) -> QParams:
        if self.training:
            self.has_nan += torch.isnan(x.detach().sum())
        return self.qparams()

    def qparams(self) -> QParams:
        zero_point = self.zero_point.round().to(torch.int32)
        return QParams(self.scale.clamp(min=_SMALLEST), zero_point, self.scheme)


def learned_start(weight: Tensor, scheme: Scheme) -> QParams:
    """Where a learned scale of a weight starts: ``2 mean(|w|) / sqrt(qmax)``, section 2.1."""
    rows, axis = blocks(weight.detach().to(torch.float32), scheme)
    size = rows.abs()
    mean = size.mean() if axis is None else size.movedim(axis, 0).flatten(1).mean(1)
    scale = (2 * mean / scheme.qmax**0.5).clamp(min=_SMALLEST)
    if scheme.group_size is not None:
        scale = scale.reshape(weight.shape[0], -1)
    return QParams(scale, torch.zeros_like(scale, dtype=torch.int32), scheme)


def unknown_range(name: str) -> str:
    """What to say where nothing was seen of a tensor, or only infinities."""
    return (
        f"the range of tensor {name!r} is not known: train for a step, or pass calibration= to "
        "prepare_qat"
    )


def _step(name: str, observer: Observer, has_range: bool) -> float | None:
    """What part of the way to a new extremum the range goes; ``None``: all, and never back."""
    if isinstance(observer, MovingAverageMinMax):
        return observer.averaging_constant
    if isinstance(observer, MinMax):
        return None
    if isinstance(observer, FixedRange) or has_range:
        return 0.0
    raise PlanError(
        f"the observer {observer.name!r} of tensor {name!r} cannot follow training: take "
        "MovingAverageMinMax (see octavo.qat_qconfig), or pass calibration= so that it finds "
        "a range before"
    )
