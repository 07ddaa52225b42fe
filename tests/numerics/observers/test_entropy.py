"""Divergence: by hand, and against P and Q written out bin by bin."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from observing import DISTRIBUTIONS, observed
from torch import Tensor

from octavo.numerics.observers import Entropy
from octavo.numerics.observers.dyadic import DyadicHistogram, dyadic_histogram
from octavo.numerics.observers.entropy import divergence
from octavo.numerics.observers.quantization_error import grid_of_ranges
from octavo.numerics.scheme import Scheme


def seen_in(x: Tensor, bins: int) -> DyadicHistogram:
    return next(dyadic_histogram(x, None, bins).blocks_of_rows())


def divergence_of(seen: DyadicHistogram, low: float, high: float, scheme: Scheme) -> float:
    grid = grid_of_ranges(seen, torch.tensor([[low]]), torch.tensor([[high]]), scheme)
    return divergence(seen, grid, scheme.qmax - scheme.qmin + 1).item()


def written_out(seen: DyadicHistogram, low: float, high: float, scheme: Scheme) -> float:
    """KL(P || Q) as in Migacz's pseudocode, with cells that end at the nearest edge."""
    grid = grid_of_ranges(seen, torch.tensor([[low]]), torch.tensor([[high]]), scheme)
    count = seen.nonzero_counts[0].tolist()
    start, step = seen.edges[0, 0].item(), grid.step.item()
    levels = scheme.qmax - scheme.qmin + 1
    ends = [
        min(max(round((grid.lowest.item() - 0.5 + j) * step - start), 0), len(count))
        for j in range(levels + 1)
    ]
    first, last = ends[0], ends[-1]
    p = count[first:last]
    p[0] += sum(count[:first])
    p[-1] += sum(count[last:])
    q = [0.0] * len(p)
    for a, b in pairwise(ends):
        filled = [k for k in range(a, b) if p[k - first] > 0]
        for k in filled:
            q[k - first] = max(sum(count[a:b]), 1) / len(filled)
    # A cell that holds only what is cut counts as one value in Q, and adds nothing to its total.
    kept = max(sum(count[first:last]), 1)
    total = sum(p)
    return sum(
        a / total * math.log((a / total) / (b / kept)) for a, b in zip(p, q, strict=True) if a
    )


def test_a_cell_for_each_bin_loses_nothing() -> None:
    seen = seen_in(torch.arange(0.0, 256.0).repeat(3), 256)
    assert divergence_of(seen, 0.0, 255.0, Scheme("uint8")) == pytest.approx(0.0, abs=0.02)


def test_two_bins_to_a_cell_by_hand() -> None:
    # Bins 1 wide; a step of 2 puts bins 1 and 2 into one cell: three values and one.
    x = torch.tensor([1.5] * 3 + [2.5] + [509.5])
    seen = seen_in(x, 512)
    found = divergence_of(seen, 0.0, 510.0, Scheme("uint8"))
    # P = 3/5, 1/5, 1/5 and Q = 2/5, 2/5, 1/5
    assert found == pytest.approx(0.6 * math.log(1.5) + 0.2 * math.log(0.5))


@pytest.mark.parametrize("name", ["normal", "laplace", "lognormal", "relu", "one outlier"])
@pytest.mark.parametrize("factor", [1.0, 0.7, 0.4])
@pytest.mark.parametrize(
    "scheme", [Scheme("uint8"), Scheme("int8", symmetric=True, narrow_range=True)], ids=str
)
def test_sums_are_those_of_bins(name: str, factor: float, scheme: Scheme) -> None:
    x = DISTRIBUTIONS[name](5_000)
    seen = seen_in(x, 2048)
    low, high = x.min().item() * factor, x.max().item() * factor
    expected = written_out(seen, low, high, scheme)
    assert divergence_of(seen, low, high, scheme) == pytest.approx(expected, abs=1e-9)


def test_one_sided_data_keeps_its_end_at_zero() -> None:
    x = torch.randn(50_000).relu()
    x[0] = 20.0
    bounds = observed(Entropy(), [x], Scheme("uint8"))
    assert bounds.low == 0.0
    assert 1.0 < bounds.high < 20.0


def test_too_few_bins_leave_min_max() -> None:
    x = torch.randn(1000)
    bounds = observed(Entropy(bins=16), [x], Scheme("uint8"))
    assert (bounds.low, bounds.high) == (x.min(), x.max())
