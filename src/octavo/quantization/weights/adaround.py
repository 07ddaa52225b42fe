"""AdaRound: whether each weight goes up or down is learned, so that the layer's output changes
least (Nagel et al. 2020, arXiv:2004.10568).

For small errors the best choice is a quadratic unconstrained binary problem, of each row of the
weight alone (equation 20): ``min e H e^T`` with ``H = E[x x^T]``. A share ``h`` between 0 and 1 of
each step up takes the place of the choice, a rectified sigmoid (equations 22 and 23), and a term
``1 - |2 h - 1|^beta`` (equation 24), whose ``beta`` falls, drives it to one of both ends. The paper
draws images for each step of Adam; here ``H`` has all of them, so that a step is one product of
matrices and nothing is left to chance.

In the end single weights are moved as long as that makes the error of their row smaller, from what
was learned and from what was there before; of all that, the best is kept for each row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from octavo.quantization.weights.layers import Rounded
from octavo.quantization.weights.outputs_kept import KeepsOutputs, by_column

_LOW, _HIGH = -0.1, 1.1  # of the sigmoid, before it is cut off at 0 and 1
_BETA = 20.0, 2.0  # at first, and in the end
FREE = 0.2  # of the steps come before anything drives to the ends
WEIGHT = 5.0  # of the term that does, where the error of rounding to nearest is 1 for a weight
_RATE = 0.02  # of Adam
_MOVED = 256  # weights of a row in the end, at most
_TRIED = 8  # steps that tell how long one takes


@dataclass(frozen=True)
class AdaRound(KeepsOutputs):
    """Each weight up or down, as the layer's output asks for.

    It is for linear layers, and for static convolutions in two dimensions. It
    keeps the scales of the methods before it, and their integers for rows whose error on the data
    would become larger.

    Args:
        steps: of Adam, for each layer.
        seconds: that a layer may take: fewer steps are made where they would take longer, so that
            the integers depend on how fast the machine is. ``None``: all are made.
        most_inputs: layers that read more inputs for an output are left as they are, see
            `octavo.GPTQ`.

    Example:
        >>> layer = torch.nn.Linear(64, 8)
        >>> q = octavo.quantize(
        ...     layer,
        ...     calibration=[torch.randn(256, 64)],
        ...     qconfig=octavo.weight_only_qconfig(4, group_size=32),
        ...     weights=[octavo.Clip(), octavo.AdaRound(steps=100)],
        ... )
        >>> q.provenance["weights"]
        'clip, adaround, bias_correction'
    """

    name: ClassVar[str] = "adaround"

    steps: int = 500
    seconds: float | None = None
    most_inputs: int | None = None

    def integers(self, weight: Tensor, moments: Tensor, now: Rounded) -> Tensor:
        choice = Choice.of(weight, moments, now)
        learned = choice.integers(learned_shares(choice, steps_in(self.steps, self.seconds)))
        before = choice.by_group(now.integers.flatten(1))
        found = torch.stack([before, settled(choice, before), settled(choice, learned)])
        best = torch.stack([choice.costs(each) for each in found]).argmin(0)
        kept = found.gather(0, best[None, :, :, None].expand_as(found[:1]))
        return kept.reshape(weight.shape)


@dataclass(frozen=True)
class Choice:
    """The weights of a layer between the integers below and above them, all ``[groups, rows,
    columns]`` in float32.

    Attributes:
        weight: in float.
        below: the integer below.
        scale, zero_point: of each.
        moments: ``[groups, columns, columns]``.
        lowest, highest: of all integers.
    """

    weight: Tensor
    below: Tensor
    scale: Tensor
    zero_point: Tensor
    moments: Tensor
    lowest: int
    highest: int

    @classmethod
    def of(cls, weight: Tensor, moments: Tensor, now: Rounded) -> Choice:
        rows, columns = weight.shape
        qparams, moments = now.qparams, moments.to(torch.float32).reshape(-1, columns, columns)
        weight, scale, zero_point = (
            values.to(torch.float32).reshape(len(moments), -1, columns)
            for values in (
                weight,
                by_column(qparams.scale, qparams, rows, columns),
                by_column(qparams.zero_point, qparams, rows, columns),
            )
        )
        below = (weight / scale).floor() + zero_point
        ends = (qparams.scheme.qmin, qparams.scheme.qmax)
        return cls(weight, below, scale, zero_point, moments, *ends)

    def by_group(self, values: Tensor) -> Tensor:
        """Values of all weights ``[rows, columns]`` as those here are."""
        return values.to(torch.float32).reshape(self.weight.shape)

    @property
    def shares(self) -> Tensor:
        """How far each weight is above the integer below."""
        return self.weight / self.scale + self.zero_point - self.below

    @property
    def is_open(self) -> Tensor:
        """Whether both integers are in the range; where not, there is nothing to choose."""
        return (self.below >= self.lowest) & (self.below < self.highest)

    def integers(self, shares: Tensor) -> Tensor:
        """Up where the share is half or more."""
        return (self.below + (shares >= 0.5)).clamp(self.lowest, self.highest)

    def errors(self, integers: Tensor) -> Tensor:
        """What they add to the weight; of what lies between integers, too."""
        return (
            integers.clamp(self.lowest, self.highest) - self.zero_point
        ) * self.scale - self.weight

    def costs(self, integers: Tensor) -> Tensor:
        """``e H e^T`` of each row, float64 ``[groups, rows]``."""
        errors = self.errors(integers).double()
        return (errors @ self.moments.double() * errors).sum(2)


def learned_shares(choice: Choice, steps: Iterator[float]) -> Tensor:
    """The shares ``h`` in the end, ``[groups, rows, columns]``.

    Rows do not know of each other: the error of each is counted in what rounding to nearest costs
    it, for each of its weights.

    Args:
        choice: what is to be chosen.
        steps: of each step of Adam, how far it is on the way from 0 to 1.
    """
    nearest = choice.costs(choice.integers(choice.shares))
    columns = choice.weight.shape[2]
    unit = (nearest / columns).clamp(min=torch.finfo(torch.float32).tiny).float().unsqueeze(2)
    slope = torch.where(choice.is_open, 2 * choice.scale / unit, 0.0)
    logits, wide = logits_of(choice.shares), _HIGH - _LOW
    mean, square = torch.zeros_like(logits), torch.zeros_like(logits)
    for count, done in enumerate(steps, 1):
        sigmoid = torch.sigmoid(logits)
        raw = sigmoid * wide + _LOW
        h = raw.clamp(0.0, 1.0)
        gradient = choice.errors(choice.below + h) @ choice.moments * slope
        if done >= FREE:
            beta = beta_at(done)
            signed = 2 * h - 1
            gradient -= signed.sign() * signed.abs().pow_(beta - 1) * (2 * beta * WEIGHT)
        gradient *= torch.where((raw > 0) & (raw < 1), sigmoid * (1 - sigmoid) * wide, 0.0)
        # Adam (Kingma and Ba 2014, arXiv:1412.6980)
        mean.lerp_(gradient, 0.1)
        square.lerp_(gradient.square(), 0.001)
        size = (square / (1 - 0.999**count)).sqrt_().add_(1e-8)
        logits -= mean / (1 - 0.9**count) / size * _RATE
    return rectified(logits)


def settled(choice: Choice, integers: Tensor) -> Tensor:
    """Integers of which none can go up or down alone so that the error of its row is smaller; but
    of each row `_MOVED` are moved at most, the one that brings most first.
    """
    integers, moments = integers.clone(), choice.moments
    slope = choice.errors(integers) @ moments
    curve = choice.scale.square() * moments.diagonal(dim1=1, dim2=2).unsqueeze(1)
    groups = torch.arange(len(moments), device=moments.device).unsqueeze(1)
    for _ in range(min(_MOVED, choice.weight.shape[2])):
        up, down = curve + 2 * choice.scale * slope, curve - 2 * choice.scale * slope
        up.masked_fill_(integers >= choice.highest, torch.inf)
        down.masked_fill_(integers <= choice.lowest, torch.inf)
        least, at = torch.minimum(up, down).min(2, keepdim=True)
        step = torch.where(up.gather(2, at) <= least, 1.0, -1.0) * (least < 0)
        if not bool(step.any()):
            break
        integers.scatter_add_(2, at, step)
        slope += step * choice.scale.gather(2, at) * moments[groups, at.squeeze(2)]
    return integers


def rectified(logits: Tensor) -> Tensor:
    """The shares ``h`` of equation 23."""
    return (torch.sigmoid(logits) * (_HIGH - _LOW) + _LOW).clamp(0.0, 1.0)


def logits_of(shares: Tensor) -> Tensor:
    """What `rectified` makes shares of."""
    return torch.logit(((shares - _LOW) / (_HIGH - _LOW)).clamp(1e-6, 1 - 1e-6))


def beta_at(done: float) -> float:
    """The exponent of the term that drives shares to their ends, which `FREE` of the way is not
    there yet.

    Args:
        done: how far learning is on the way from 0 to 1.
    """
    first, last = _BETA
    driven = (done - FREE) / (1 - FREE)
    return last + (first - last) * (1 + math.cos(math.pi * driven)) / 2


def steps_in(count: int, seconds: float | None) -> Iterator[float]:
    """How far each step is on the way; as many as there is time for, which the first ones tell."""
    started = time.perf_counter()
    for step in range(count):
        if step == _TRIED and seconds is not None:
            each = (time.perf_counter() - started) / _TRIED
            count = min(count, max(int(seconds / each), _TRIED + 1))
        if step == count:
            break
        yield step / count
