from __future__ import annotations

import math

import pytest
import torch

from octavo.measuring.significance import PairedCounts, mcnemar, wilson


@pytest.mark.parametrize(
    ("right", "total", "interval"),
    [
        (98, 100, (0.9300, 0.9945)),
        (0, 10, (0.0, 0.2775)),
        (10, 10, (0.7225, 1.0)),
        (1, 1, (0.2065, 1.0)),
        (50_000, 100_000, (0.4969, 0.5031)),
    ],
)
def test_the_interval_of_wilson(right: int, total: int, interval: tuple[float, float]) -> None:
    assert wilson(right, total) == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize(
    ("lost", "won", "p_value"),
    [
        (10, 2, 2 * (1 + 12 + 66) / 4096),  # 0.0386
        (2, 10, 2 * (1 + 12 + 66) / 4096),
        (0, 5, 2 / 32),
        (0, 0, 1.0),
        (7, 7, 1.0),
        (1, 2, 1.0),
    ],
)
def test_the_test_of_mcnemar(lost: int, won: int, p_value: float) -> None:
    assert mcnemar(lost, won) == pytest.approx(p_value, rel=1e-12)


def test_large_counts_as_with_whole_numbers() -> None:
    exact = 2 * sum(math.comb(2000, few) for few in range(981)) / 2**2000
    assert mcnemar(1020, 980) == pytest.approx(exact, rel=1e-9)
    assert mcnemar(100_000, 0) == 0.0


def test_counts_of_pairs() -> None:
    counts = PairedCounts()
    assert not counts.known
    counts.update(torch.tensor([True, True, False]), torch.tensor([True, False, True]))
    counts.update(torch.tensor([True, False]), torch.tensor([False, False]))
    assert (counts.total, counts.right, counts.lost, counts.won) == (5, 2, 2, 1)
    assert counts.known
    counts.update(None, torch.tensor([True]))
    assert not counts.known
