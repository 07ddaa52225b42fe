"""Search for a range: both ends shrink towards zero, coarsely over all sizes and then finely.

The factors are geometric, since the best range of heavy-tailed data can be a hundredth of all that
was seen. Every search starts at the full range, and what it finds is taken only where its
integrated error is no larger than that of the full range.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from octavo.numerics.observers.dyadic import DyadicHistogram
from octavo.numerics.observers.quantization_error import integrated_error
from octavo.numerics.scheme import Scheme

# From all to a 128th in steps of 2**(1/3); then one such step to either side in steps of 2**(1/18),
# 4 percent: the error is flat around its minimum. Each list begins with 1, so that of ranges that
# are equally good the widest wins.
_COARSE = [2.0 ** (-i / 3) for i in range(22)]
_FINE = [1.0, *(2.0 ** (i / 18) for i in range(-6, 7) if i)]

# Low and high ends, float32 [rows, ranges], to a loss [rows, ranges].
Loss = Callable[[Tensor, Tensor], Tensor]
# One list of factors to those of the low and of the high end.
Pairing = Callable[[Tensor], tuple[Tensor, Tensor]]


def together(factors: Tensor) -> tuple[Tensor, Tensor]:
    """Both ends shrink by the same factor."""
    return factors, factors


def freely(factors: Tensor) -> tuple[Tensor, Tensor]:
    """Each end shrinks by any factor."""
    return factors.repeat_interleave(len(factors)), factors.repeat(len(factors))


def search(
    seen: DyadicHistogram, scheme: Scheme, pairing: Pairing, loss: Loss
) -> tuple[Tensor, Tensor]:
    """The range of least loss among those whose squared error is no more than the full range's.

    Args:
        seen: the values, of few rows.
        scheme: how they will be quantized.
        pairing: `together` or `freely`.
        loss: what to minimise.

    Returns:
        Low and high end, float32 ``[rows]`` each, inside what was seen.
    """
    low_factor = high_factor = torch.ones_like(seen.low).unsqueeze(1)
    for stage in (_COARSE, _FINE):
        low_factors, high_factors = pairing(low_factor.new_tensor(stage))
        low_factors = (low_factor * low_factors).clamp(max=1)
        high_factors = (high_factor * high_factors).clamp(max=1)
        best = loss(*shrunk(seen, scheme, low_factors, high_factors)).argmin(1, keepdim=True)
        low_factor, high_factor = low_factors.gather(1, best), high_factors.gather(1, best)
    return _unless_worse(seen, scheme, *shrunk(seen, scheme, low_factor, high_factor))


def shrunk(
    seen: DyadicHistogram, scheme: Scheme, low_factor: Tensor, high_factor: Tensor
) -> tuple[Tensor, Tensor]:
    """What is left of the full range when its ends are multiplied by factors.

    A symmetric range is that of the larger end, so there it is what shrinks.

    Args:
        seen: the values.
        scheme: symmetric or affine.
        low_factor: ``[rows, ranges]``, at most 1.
        high_factor: same shape.

    Returns:
        Low and high ends, float32 ``[rows, ranges]`` each.
    """
    low, high = seen.low.unsqueeze(1), seen.high.unsqueeze(1)
    largest = torch.maximum(-low, high)
    bottom, top = (-largest, largest) if scheme.symmetric else (low, high)
    return (
        torch.clamp(bottom * low_factor, low, high),
        torch.clamp(top * high_factor, low, high),
    )


def _unless_worse(
    seen: DyadicHistogram, scheme: Scheme, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    lows = torch.cat([seen.low.unsqueeze(1), low], dim=1)
    highs = torch.cat([seen.high.unsqueeze(1), high], dim=1)
    best = integrated_error(seen, lows, highs, scheme).argmin(1, keepdim=True)
    return lows.gather(1, best).squeeze(1), highs.gather(1, best).squeeze(1)
