from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.runtimes.native import four_bits
from octavo.runtimes.native.matrix import Matrix
from octavo.runtimes.native.products import Product


def eight_bits(rows: int, columns: int) -> tuple[Product, torch.Tensor]:
    """Of chance, with the floats that it stands for."""
    integers = torch.randint(-128, 128, (rows, columns), dtype=torch.int8)
    scale = torch.rand(rows) + 0.01
    made = Product.of_eight_bits(Matrix.of(integers, scale, None), rows, columns)
    return made, integers.double() * scale[:, None].double()


def of_four_bits(rows: int, groups: int, size: int) -> tuple[Product, torch.Tensor]:
    integers = torch.randint(0, 16, (rows, groups * size))
    scale, zero_point = torch.rand(rows, groups) + 0.01, torch.randint(0, 16, (rows, groups))
    made = Product.of_four_bits(
        four_bits.pack(integers),
        four_bits.by_blocks(scale),
        four_bits.by_blocks(zero_point).to(torch.uint8),
        rows,
    )
    blocks = integers.reshape(rows, groups, size).double() - zero_point[..., None]
    return made, (blocks * scale[..., None].double()).reshape(rows, -1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [1, 33, 70])
def test_rounded_rows_have_eight_bits(instruction_set, bits, count):
    torch.manual_seed(0)
    made, weight = of_four_bits(90, 3, 64) if bits == 4 else eight_bits(90, 191)
    x = torch.randn(count, weight.shape[1])
    found, finite = made.with_bias(torch.arange(90.0)).of_rows(x, rounded=True)
    low, high = x.clamp(max=0).amin(1, True), x.clamp(min=0).amax(1, True)
    # Half a step of the input, and of weights that had four bits half a step of theirs.
    most = (high - low).double() / 255 * 1.01 * weight.abs().sum(1)
    if bits == 4:
        most += x.double().abs().sum(1, True) * weight.abs().amax(1) * 15 / 8 / 127
    exact = x.double() @ weight.T + torch.arange(90.0)
    assert finite
    assert bool(((found.double() - exact).abs() <= most).all())
    assert (found.double() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_scales_of_weights_without_finite_products_are_told(instruction_set, value):
    """No integer stands for what they make; 15 times the last is infinite."""
    made, _ = of_four_bits(90, 3, 64)
    made._held[1][2, 1, 5] = value
    _, finite = made.of_rows(torch.randn(33, 192), rounded=True)
    assert not finite


def assert_near(have: torch.Tensor, want: torch.Tensor, x: torch.Tensor, weight: torch.Tensor):
    """Each value of a row is off by at most half a step of its largest, 1 / 32512."""
    most = x.abs().amax(1, keepdim=True).double() / 32512 * weight.abs().sum(1) + 1e-6
    assert bool(((have.double() - want).abs() <= most).all())


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(1, 70),
    groups=st.integers(1, 4),
    size=st.sampled_from([32, 64, 128]),
    count=st.integers(1, 9),
    bits=st.sampled_from([4, 8]),
    seed=st.integers(0, 99),
)
def test_they_are_those_of_dequantized_weights(
    instruction_set, rows, groups, size, count, bits, seed
):
    torch.manual_seed(seed)
    columns = groups * size - (bits == 8)
    made, weight = eight_bits(rows, columns) if bits == 8 else of_four_bits(rows, groups, size)
    x, bias = torch.randn(count, columns), torch.randn(rows)
    exact = x.double() @ weight.T
    assert_near(made(x), exact, x, weight)
    assert_near(made.with_bias(bias)(x), exact + bias.double(), x, weight)
    assert torch.equal(made(torch._neg_view(x)), made(-x))
    result, finite = made.of_rows(x)
    assert finite
    assert torch.equal(result, made(x))


def test_many_rows_are_taken_in_panels(instruction_set):
    for made, weight in (eight_bits(33, 4000), of_four_bits(33, 2, 2016)):
        x = torch.randn(100, made.columns)
        assert_near(made(x), x.double() @ weight.T, x, weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_told(instruction_set, value):
    for made, _ in (eight_bits(20, 30), of_four_bits(20, 1, 32)):
        x = torch.randn(3, made.columns)
        x[1, 4] = value
        result, finite = made.of_rows(x)
        assert not finite
        assert result.isnan().all(1).tolist() == [False, True, False]


def test_what_does_not_fit_is_refused():
    made, _ = eight_bits(20, 30)
    for x in (torch.randn(2, 31), torch.randn(30), torch.randn(2, 30).double()):
        with pytest.raises(ValueError, match="for a weight of 30 columns"):
            made(x)
    matrix = Matrix.of(torch.ones(20, 30, dtype=torch.int8), torch.ones(20), None)
    for rows, columns in ((40, 30), (20, 40), (20, 33)):
        with pytest.raises(ValueError, match="packed weights of"):
            Product.of_eight_bits(matrix, rows, columns)
