"""Exponentials, sigmoid, tanh, softmax and hard swish in fixed point, as LiteRT has them.

After gemmlowp's fixed-point numbers: an int32 of so many integer bits, the rest behind the point.
``exp`` of a negative number is a polynomial on a quarter and a factor for each bit above it;
``1 / (1 + x)`` is three steps of Newton's method. Integers are int64 here.

Tested in tests/runtimes/litert/test_kernels.py.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from octavo.runtimes.litert.fixed_point import (
    Multiplier,
    divided,
    high_product,
    short_high_product,
)

_BITS = 31
_ONE = (1 << _BITS) - 1  # without integer bits
_EXP_OF_MINUS_EIGHTH, _THIRD = 1895147668, 715827883
# Exponent of two -> exp of minus that power, without integer bits.
_EXPS = {
    -2: 1672461947,
    -1: 1302514674,
    0: 790015084,
    1: 290630308,
    2: 39332535,
    3: 720401,
    4: 242,
}
# Of Newton's first guess, with two integer bits.
_48_OVER_17, _MINUS_32_OVER_17 = 1515870810, -1010580540
_TWO = 2  # integer bits of that
_STEPS = 3


def exp_of_negatives(a: Tensor, integer_bits: int) -> Tensor:
    """``exp(a)`` without integer bits, of numbers up to 0 with some."""
    fraction = _BITS - integer_bits
    quarter = 1 << (fraction - 2)
    rest = (a & (quarter - 1)) - quarter
    result = _exp_within_a_quarter(_raised(rest, integer_bits))
    for exponent, factor in _EXPS.items():
        if exponent < integer_bits:
            has_it = ((rest - a) >> (fraction + exponent)) & 1 == 1
            result = torch.where(has_it, high_product(result, _like(result, factor)), result)
    return torch.where(a == 0, _ONE, result)


def _exp_within_a_quarter(a: Tensor) -> Tensor:
    """From -1/4 on, below 0: Taylor's series around -1/8."""
    x = a + (1 << (_BITS - 3))
    x2 = high_product(x, x)
    x3, x4 = high_product(x2, x), high_product(x2, x2)
    third = _like(x, _THIRD)
    tail = _lowered(high_product(_lowered(x4, 2) + x3, third) + x2, 1)
    base = _like(x, _EXP_OF_MINUS_EIGHTH)
    return base + high_product(base, x + tail)


def _newtons(a: Tensor) -> Tensor:
    """``2 / (1 + a)`` with two integer bits, of numbers from 0 to 1 without."""
    half = (a + _ONE + 1) >> 1
    x = high_product(half, _like(half, _MINUS_32_OVER_17)) + _48_OVER_17
    for _ in range(_STEPS):
        missing = (1 << (_BITS - _TWO)) - high_product(half, x)
        x = x + _raised(high_product(x, missing), _TWO)
    return x


def sigmoid(a: Tensor, integer_bits: int) -> Tensor:
    """Without integer bits, of numbers with some."""
    of_positive = _raised(_newtons(exp_of_negatives(-a.abs(), integer_bits)), 1)
    found = torch.where(a > 0, of_positive, _ONE - of_positive)
    return torch.where(a == 0, 1 << (_BITS - 1), found)


def tanh(a: Tensor, integer_bits: int) -> Tensor:
    """Without integer bits, of numbers with some."""
    twice = exp_of_negatives(-a.abs(), integer_bits + 1)  # the same bits, one more before the point
    found = _raised(_newtons(twice) - (1 << (_BITS - _TWO)), _TWO)
    return torch.where(a == 0, 0, torch.where(a > 0, found, -found))


_OF_DIFFERENCES, _OF_SUMS = 5, 12  # integer bits


def softmax(integers: Tensor, scale: float, dim: int) -> Tensor:
    """In steps of 1 / 256, of integers of a scale."""
    differences = integers - integers.amax(dim, keepdim=True)
    by, radius = widened(scale, _OF_DIFFERENCES)
    exps = exp_of_negatives(high_product(differences << by.shift, by.mantissa), _OF_DIFFERENCES)
    near = differences >= -radius
    sums = torch.where(near, _lowered(exps, _OF_SUMS), 0).sum(dim, keepdim=True)
    bits = torch.frexp(sums.double()).exponent.to(torch.int64)  # that a sum takes
    one_over = _raised(_newtons((sums << (_BITS + 1 - bits)) - (1 << _BITS)), 1)
    over_unit = _OF_SUMS - (_BITS + 1 - bits)
    shares = divided(high_product(one_over.expand_as(exps), exps), over_unit + _BITS - 8)
    return torch.where(near, shares, 0)


_FINER = 7  # bits that a difference of two int8 is shifted by, to fill an int16
_SHORT_ONE = 1 << 15  # in 16 bits; 3 while shares are counted from the middle


def hard_swish(integers: Tensor, scale: float, result_scale: float) -> Tensor:
    """In steps of the result's scale, of integers of a scale less their zero point: by int16.

    The value in the result's scale, times the share of it that passes.
    """
    fine, fine_scale = integers << _FINER, np.float32(scale) / np.float32(1 << _FINER)
    by = Multiplier.of_one(float(fine_scale / np.float32(result_scale)))
    to_share = Multiplier.of_one(float(fine_scale / np.float32(3 / _SHORT_ONE)))
    up = int(to_share.shift)
    share = _as_short(fine << (up - 1)) if up > 0 else fine
    share = short_high_product(share, to_share.short)
    share = _as_short(share << 1) if up > 0 else _lowered(share, -up)
    share = (share + _SHORT_ONE) >> 1
    product = share * short_high_product(fine, by.short)
    passed = torch.div(product, _SHORT_ONE, rounding_mode="trunc")
    return divided(passed, -by.shift)


def _as_short(x: Tensor) -> Tensor:
    """At least and at most what an int16 holds."""
    return x.clamp(-_SHORT_ONE, _SHORT_ONE - 1)


def widened(scale: float, integer_bits: int) -> tuple[Multiplier, int]:
    """What brings integers of a scale to so many integer bits, and how large they may be then."""
    largest = float((1 << _BITS) - 1)
    real = min(scale * (1 << (_BITS - integer_bits)), largest)
    by = Multiplier.of_one(real)
    ends = ((1 << integer_bits) - 1) * (1 << (_BITS - integer_bits))
    return by, ends >> int(by.shift)


def _raised(x: Tensor, bits: int) -> Tensor:
    """Times a power of two, at most what an int32 holds."""
    return (x << bits).clamp(-(1 << _BITS), _ONE)


def _lowered(x: Tensor, bits: int) -> Tensor:
    return divided(x, torch.tensor(bits))


def _like(x: Tensor, number: int) -> Tensor:
    return torch.full_like(x, number)
