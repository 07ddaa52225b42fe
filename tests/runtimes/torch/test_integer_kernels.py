"""Kernels on integers against plain torch on the values that the integers mean."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from octavo.numerics import octavo_operators
from octavo.runtimes.integers import Integers
from octavo.runtimes.torch import integer_kernels as kernels


def integers(scale: float = 0.1, zero_point: int = 10) -> Integers:
    return Integers(scale, zero_point, 0, 255, torch.uint8)


def random(*shape: int) -> torch.Tensor:
    x = torch.randint(0, 256, shape, dtype=torch.uint8)
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


@given(
    size=st.integers(1, 5),
    step=st.integers(1, 4),
    pad=st.integers(0, 2),
    height=st.integers(5, 12),
    width=st.integers(5, 12),
)
def test_max_pool(size, step, pad, height, width):
    if 2 * pad >= size:
        return
    q = random(2, 3, height, width)
    got = kernels.max_pool2d([size, size], [step, step], [pad, pad])(q)
    expected = functional.max_pool2d(q.float(), size, step, pad).to(torch.uint8)
    assert torch.equal(got, expected)
    assert got.data_ptr() != q.data_ptr()


@pytest.mark.parametrize(
    "shape", [(2, 1, 6, 6), (2, 3, 6, 6), (2, 9, 6, 6), (4, 7), (2, 3, 4, 5, 6)]
)
def test_quantize_equals_the_oracle(shape):
    x = torch.randn(shape) * 5
    out = Integers(0.07, 60, 0, 127, torch.uint8)
    got = kernels.quantize(out)(x)
    assert torch.equal(got, octavo_operators.quantize(x, 0.07, 60, 0, 127, torch.uint8))
    if len(shape) == 4:
        assert got.is_contiguous(memory_format=torch.channels_last)
        again = kernels.quantize(out)(x.contiguous(memory_format=torch.channels_last))
        assert torch.equal(again, got)


def test_quantize_leaves_its_input():
    x = torch.randn(4, 4)
    before = x.clone()
    kernels.quantize(integers())(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("zero_point", [0, 10])
def test_dequantize_equals_the_oracle(zero_point):
    q = random(3, 5)
    assert torch.equal(
        kernels.dequantize(0.3, zero_point)(q), octavo_operators.dequantize(q, 0.3, zero_point)
    )


def check(got: torch.Tensor, real: torch.Tensor, out: Integers) -> None:
    expected = octavo_operators.quantize(
        real, out.scale, out.zero_point, out.low, out.high, out.dtype
    )
    difference = (got.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference == 0).float().mean() > 0.999


def real(q: torch.Tensor, meant: Integers) -> torch.Tensor:
    return octavo_operators.dequantize(q, meant.scale, meant.zero_point)


# Scales with no simple ratio: at an exact tie either neighbour is right.
A = Integers(0.1123581, 7, 0, 255, torch.uint8)
B = Integers(0.0531415, 90, 0, 255, torch.uint8)


@pytest.mark.parametrize("shapes", [((2, 8, 5, 5), (2, 8, 5, 5)), ((2, 8, 5, 5), (2, 8, 1, 1))])
def test_add_and_multiply(shapes):
    a, b = random(*shapes[0]), random(*shapes[1])
    out = Integers(0.1927182, 33, 0, 255, torch.uint8)
    check(kernels.add(A, B, out)(a, b), real(a, A) + real(b, B), out)
    check(kernels.add(B, A, out)(b, a), real(a, A) + real(b, B), out)
    product = Integers(1.7320508, 33, 0, 255, torch.uint8)
    check(kernels.multiply(A, B, product)(a, b), real(a, A) * real(b, B), product)
    check(kernels.multiply(B, A, product)(b, a), real(a, A) * real(b, B), product)


def test_relu_is_a_narrower_range():
    q = random(100, 100)
    out = Integers(0.0412431, 20, 0, 255, torch.uint8)
    assert out.clipped(0.0, float("inf")).low == 20
    check(kernels.rescale(B, out.clipped(0.0, float("inf")))(q), real(q, B).relu(), out)
    check(kernels.rescale(B, out.clipped(-0.4, 2.0))(q), real(q, B).clamp(-0.4, 2.0), out)


def test_mean_and_pooling():
    q = random(4, 8, 6, 6)
    out = Integers(0.0612372, 40, 0, 255, torch.uint8)
    check(kernels.mean([2, 3], True, A, out)(q), real(q, A).mean((2, 3), keepdim=True), out)
    pool = lambda x: functional.avg_pool2d(x, 3, 2, 1)  # noqa: E731
    check(kernels.through_float(pool, A, out)(q), pool(real(q, A)), out)


def test_adding_to_floats():
    out, other = integers(2.0, 7), integers(1.0, 3)
    sums, q = torch.arange(-300.0, 300.0), random(600)
    expected = octavo_operators.quantize(sums + real(q, other), 2.0, 7, 0, 255, torch.uint8)
    assert torch.equal(kernels.add_to_float(other, out)(sums, q), expected)


@given(zero_point=st.integers(0, 255))
def test_halves_are_rounded_as_the_oracle_does(zero_point):
    """An odd zero point that is added before the rounding turns them the other way."""
    out = Integers(2.0, zero_point, 0, 255, torch.uint8)
    x = torch.arange(-300.0, 300.0)
    expected = octavo_operators.quantize(x, 2.0, zero_point, 0, 255, torch.uint8)
    assert torch.equal(kernels.quantize(out)(x), expected)
    source = Integers(1.0, zero_point, 0, 255, torch.uint8)
    q = torch.arange(256, dtype=torch.uint8)
    expected = octavo_operators.quantize(real(q, source), 2.0, zero_point, 0, 255, torch.uint8)
    assert torch.equal(kernels.rescale(source, out)(q), expected)
    nothing = torch.full_like(q, zero_point)
    assert torch.equal(kernels.add(source, source, out)(q, nothing), expected)
    one = torch.full_like(q, zero_point + 1) if zero_point < 255 else None
    if one is not None:
        assert torch.equal(kernels.multiply(source, source, out)(q, one), expected)


def test_zero_stays_zero_however_far_apart_the_scales_are():
    wide, tiny = Integers(4e5, 179, 0, 255, torch.uint8), Integers(0.0027, 109, 0, 255, torch.uint8)
    zero, q = torch.full((4,), 179, dtype=torch.uint8), torch.tensor([178, 179, 180, 255])
    q = q.to(torch.uint8)
    expected = torch.tensor([0, 109, 255, 255], dtype=torch.uint8)
    assert torch.equal(kernels.rescale(wide, tiny)(q), expected)
    assert torch.equal(kernels.add(wide, wide, tiny)(q, zero), expected)
    assert torch.equal(kernels.subtract(wide, wide, tiny)(q, zero), expected)
    one = Integers(1.0, 7, 0, 255, torch.uint8)
    eight = torch.full((4,), 8, dtype=torch.uint8)
    assert torch.equal(kernels.multiply(wide, one, tiny)(q, eight), expected)
    assert torch.equal(kernels.mean([1], False, wide, tiny)(q[:, None]), expected)


@pytest.mark.parametrize(
    ("step", "often"), [(0.5, True), (0.75, True), (2.0**-9, True), (0.3, False), (2.0**-20, False)]
)
def test_steps_that_meet_halves(step, often):
    steps = torch.full((16,), step)
    assert kernels.meets_halves(steps, integers(1.0, 11)) == often
    assert not kernels.meets_halves(steps, integers(1.0, 10)), "even: both orders mean the same"
