"""The error of a range: integrals by hand, and against the values themselves."""

from __future__ import annotations

import pytest
import torch
from observing import DISTRIBUTIONS, SCHEMES, mean_squared_error
from torch import Tensor

from octavo.numerics.affine import qparams_of_range
from octavo.numerics.observers.dyadic import DyadicHistogram, dyadic_histogram
from octavo.numerics.observers.quantization_error import (
    Moments,
    estimated_error,
    grid_of_ranges,
    integrated_error,
)
from octavo.numerics.scheme import Scheme


def column(value: float) -> Tensor:
    return torch.tensor([[value]])


def one_wide_bins(counts: list[int]) -> DyadicHistogram:
    """Bins of width 1 from 0."""
    high = torch.tensor(len(counts) - 0.5).reshape(1)
    return DyadicHistogram(torch.tensor([counts]), torch.tensor([0]), torch.zeros(1), high)


@pytest.mark.parametrize(
    ("high", "error"),
    [
        (255.0, 5 / 12),  # a step is a bin: a twelfth for each value
        (510.0, 3 * 1 / 3 + 2 * 1 / 3),  # two bins to a step: the integral of t**2 over [0, 1]
        # Clipped at 4: what is below rounds, and the integral of t**2 over [1, 2] is on top.
        (4.0, 4 / 12 * (4 / 255) ** 2 + 7 / 3),
    ],
)
def test_integrals_by_hand(high: float, error: float) -> None:
    # Three values in [0, 1), one in [3, 4), one in [5, 6).
    seen = one_wide_bins([3, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    found = integrated_error(seen, column(0.0), column(high), Scheme("uint8"))
    assert found.item() == pytest.approx(error, rel=1e-5)


def test_exact_zeros_cost_nothing() -> None:
    seen = dyadic_histogram(torch.tensor([0.0, 0.0, 0.0, 255.0]), None, 256)
    assert seen.nonzero_counts.sum() == 1
    assert integrated_error(seen, column(0.0), column(510.0), Scheme("uint8")).item() < 1


# With 16 integers a step is too wide for Bennett's estimate, and with 65536 one bin too much is.
EIGHT_BITS = [scheme for scheme in SCHEMES if scheme.integers.bits == 8]


@pytest.mark.parametrize("scheme", EIGHT_BITS, ids=str)
@pytest.mark.parametrize("name", ["normal", "laplace", "lognormal", "relu", "bimodal"])
@pytest.mark.parametrize("factor", [1.0, 0.6, 0.3])
def test_both_errors_are_that_of_the_values(name: str, scheme: Scheme, factor: float) -> None:
    x = DISTRIBUTIONS[name](50_000)
    seen = next(dyadic_histogram(x, None, 2048).blocks_of_rows())
    low, high = x.min() * factor, x.max() * factor
    true = mean_squared_error(x, qparams_of_range(low, high, scheme)) * x.numel()
    square = seen.width.item() ** 2
    low, high = low.reshape(1, 1), high.reshape(1, 1)
    integrated = integrated_error(seen, low, high, scheme).item() * square
    estimate = estimated_error(Moments.of(seen), grid_of_ranges(seen, low, high, scheme))
    assert integrated == pytest.approx(true.item(), rel=0.01)
    assert estimate.item() * square == pytest.approx(true.item(), rel=0.06)
