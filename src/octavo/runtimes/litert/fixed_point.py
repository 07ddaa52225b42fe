"""Products with a scale as LiteRT's own kernels have them: an int32 and a shift for a float.

A scale is ``mantissa * 2 ** (shift - 31)``, its mantissa between ``2 ** 30`` and ``2 ** 31``. After
gemmlowp (Jacob et al. 2018, arXiv:1712.05877, section 2.2) the product is rounded twice: to the
upper 32 of its 64 bits, where halves go up, and where it is shifted to the right, where they go
away from zero, or up too. Integers are int64 here, so that nothing overflows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BITS, _FEW_BITS = 31, 15
_LEAST_SHIFT = -31  # what is smaller is 0


@dataclass(frozen=True)
class Multiplier:
    """Attributes: mantissa, shift: int64, of one shape."""

    mantissa: Tensor
    shift: Tensor

    @classmethod
    def of(cls, scales: Tensor) -> Multiplier:
        """The nearest to float64 scales, which are positive."""
        fraction, shift = torch.frexp(scales.double())
        mantissa = (fraction * 2.0**_BITS + 0.5).floor().to(torch.int64)
        full = mantissa == 1 << _BITS
        mantissa = torch.where(full, mantissa >> 1, mantissa)
        shift = shift.to(torch.int64) + full
        return cls(torch.where(shift < _LEAST_SHIFT, 0, mantissa), shift.clamp(min=_LEAST_SHIFT))

    @classmethod
    def of_one(cls, scale: float) -> Multiplier:
        """The nearest to one scale."""
        return cls.of(torch.tensor(scale, dtype=torch.float64))

    def over(self, count: int) -> Multiplier:
        """That of the mean of so many values, as LiteRT takes it from that of their sum."""
        more = (_BITS + self.shift).clamp(max=min(count.bit_length() - 1, 32))
        return Multiplier((self.mantissa << more) // count, self.shift - more)

    @property
    def short(self) -> Tensor:
        """The mantissa as an int16."""
        dropped = _BITS - _FEW_BITS
        rounded = (self.mantissa + (1 << (dropped - 1))) >> dropped
        return rounded.clamp(max=(1 << _FEW_BITS) - 1)

    @property
    def scales(self) -> Tensor:
        """What it stands for, float64."""
        return torch.ldexp(self.mantissa.double(), (self.shift - _BITS).double())


def rounded_twice(sums: Tensor, by: Multiplier) -> Tensor:
    """Sums times a scale, as gemmlowp has it."""
    return divided(_high(sums, by), (-by.shift).clamp(min=0))


def rounded_twice_up(sums: Tensor, by: Multiplier) -> Tensor:
    """The same with halves that go up in both roundings, as ruy's kernels have it."""
    exponent = (-by.shift).clamp(min=0)
    return (_high(sums, by) + ((torch.ones_like(exponent) << exponent) >> 1)) >> exponent


def rounded_once(sums: Tensor, by: Multiplier) -> Tensor:
    """Sums times a scale in float64, halves away from zero."""
    product = sums * by.scales
    return torch.trunc(product + 0.5 * product.sign()).to(torch.int64)


def rounded_by_few_bits(sums: Tensor, by: Multiplier) -> Tensor:
    """Sums of more than 32 bits times a scale with a mantissa of 16, halves up."""
    exponent = _FEW_BITS - by.shift
    return (sums * by.short + (torch.ones_like(exponent) << (exponent - 1))) >> exponent


def _high(sums: Tensor, by: Multiplier) -> Tensor:
    return high_product(sums << by.shift.clamp(min=0), by.mantissa)


def high_product(a: Tensor, b: Tensor) -> Tensor:
    """``a * b / 2 ** 31``, halves up: gemmlowp's SaturatingRoundingDoublingHighMul of int32."""
    return _upper(a * b, _BITS)


def short_high_product(a: Tensor, b: Tensor) -> Tensor:
    """``a * b / 2 ** 15``, halves up: the same of int16."""
    return _upper(a * b, _FEW_BITS)


def _upper(product: Tensor, bits: int) -> Tensor:
    nudge = torch.where(product >= 0, 1 << (bits - 1), 1 - (1 << (bits - 1)))
    return torch.div(product + nudge, 1 << bits, rounding_mode="trunc")


def divided(x: Tensor, exponent: Tensor) -> Tensor:
    """``x / 2 ** exponent``, halves away from zero: gemmlowp's RoundingDivideByPOT."""
    mask = (torch.ones_like(exponent) << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + ((x & mask) > threshold)
