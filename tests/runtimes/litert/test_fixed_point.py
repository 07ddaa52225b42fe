"""Products with an int32 and a shift, by hand."""

from __future__ import annotations

import pytest
import torch

from octavo.runtimes.litert.fixed_point import (
    Multiplier,
    divided,
    rounded_once,
    rounded_twice,
    rounded_twice_up,
)


def multiplier(*scales: float) -> Multiplier:
    return Multiplier.of(torch.tensor(scales, dtype=torch.float64))


def integers(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def test_a_scale_is_a_mantissa_of_31_bits_and_a_shift():
    found = multiplier(0.5, 0.75, 1.0, 3.0, 1 - 2.0**-40, 2.0**-40)
    assert found.mantissa.tolist() == [2**30, 3 * 2**29, 2**30, 3 * 2**29, 2**30, 0]
    assert found.shift.tolist() == [0, 0, 1, 2, 1, -31]


def test_products_are_rounded_twice_or_once():
    quarter = multiplier(0.25)  # 2 ** 30 and a shift of 1 to the right
    assert quarter.scales.tolist() == [0.25]
    sums = integers(5, 6, -6, 4, -5)
    # 5 / 2 is 3, and 3 / 2 is 2: what is nearer to 1 is 2.
    assert rounded_twice(sums, quarter).tolist() == [2, 2, -2, 1, -1]
    assert rounded_twice_up(sums, quarter).tolist() == [2, 2, -1, 1, -1]
    assert rounded_once(sums, quarter).tolist() == [1, 2, -2, 1, -1]


def test_scales_above_one_shift_to_the_left():
    sums = integers(7, -7, 1)
    for multiply in (rounded_twice, rounded_twice_up, rounded_once):
        assert multiply(sums, multiplier(3.0)).tolist() == [21, -21, 3]


def test_halves_that_are_shifted_away_go_away_from_zero():
    assert divided(integers(6, -6, 5, -5, 7, -7), integers(2)).tolist() == [2, -2, 1, -1, 2, -2]


@pytest.mark.parametrize(("count", "sums", "mean"), [(3, 12, 2), (4, 12, 2), (49, 98 * 3, 3)])
def test_that_of_a_mean(count, sums, mean):
    half = multiplier(0.5)
    assert rounded_twice(integers(sums), half.over(count)).tolist() == [mean]
