"""What training rounds: the oracle's values, and the gradients that the papers state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from octavo.numerics import affine, octavo_operators
from octavo.numerics.affine import QParams, qparams_of_range
from octavo.numerics.scheme import Scheme
from octavo.qat import rounding

ROWS, COLUMNS, GROUP = 4, 8, 4

schemes = st.builds(
    lambda bits, signed, symmetric, place: Scheme(
        f"{'int' if signed else 'uint'}{bits}", symmetric=symmetric, **place
    ),
    st.integers(2, 8),
    st.booleans(),
    st.booleans(),
    st.sampled_from([{}, {"channel_axis": 0}, {"channel_axis": 1}, {"group_size": GROUP}]),
)
seeds = st.integers(0, 2**31)


def shape_of(scheme: Scheme) -> tuple[int, ...]:
    """Of the scales of a ``[ROWS, COLUMNS]`` tensor."""
    if scheme.group_size is not None:
        return (ROWS, COLUMNS // GROUP)
    return () if scheme.channel_axis is None else ((ROWS, COLUMNS)[scheme.channel_axis],)


def made(scheme: Scheme, seed: int) -> tuple[Tensor, QParams]:
    """Values of which some are out of range."""
    torch.manual_seed(seed)
    size = 2.0 ** torch.randint(-6, 7, ()).item()
    low, high = (-size * torch.rand(shape_of(scheme)), size * (0.1 + torch.rand(shape_of(scheme))))
    return size * torch.randn(ROWS, COLUMNS), qparams_of_range(low, high, scheme)


def spread(values: Tensor, scheme: Scheme) -> Tensor:
    """One for each element of a ``[ROWS, COLUMNS]`` tensor."""
    if scheme.group_size is not None:
        return values.repeat_interleave(GROUP, 1)
    if scheme.channel_axis is None:
        return values.expand(ROWS, COLUMNS)
    return (
        values[:, None].expand(ROWS, COLUMNS)
        if scheme.channel_axis == 0
        else values.expand(ROWS, COLUMNS)
    )


def summed(values: Tensor, scheme: Scheme) -> Tensor:
    """Of each scale's elements: the transpose of `spread`."""
    if scheme.group_size is not None:
        return values.reshape(ROWS, -1, GROUP).sum(2)
    return values.sum() if scheme.channel_axis is None else values.sum(1 - scheme.channel_axis)


@given(schemes, seeds)
def test_values_are_the_oracles(scheme: Scheme, seed: int) -> None:
    """Where a quotient is not half-way between two integers to the bit, and else to one step."""
    x, qparams = made(scheme, seed)
    found, expected = rounding.fake_quantize(x, qparams), affine.fake_quantize(x, qparams)
    scale = spread(qparams.scale, scheme)
    off = (found - expected).abs()
    assert bool((off <= scale * 1.001).all())
    v = x / scale
    from_half = (v - v.floor() - 0.5).abs()
    assert bool((off[from_half > 1e-4] == 0).all())


@given(schemes, seeds)
def test_the_gradient_is_one_in_range_and_zero_outside(scheme: Scheme, seed: int) -> None:
    x, qparams = made(scheme, seed)
    upstream = torch.randn(x.shape)
    x.requires_grad_()
    rounding.fake_quantize(x, qparams).backward(upstream)
    v = x.detach() / spread(qparams.scale, scheme)
    zero_point = spread(qparams.zero_point, scheme)
    # What rounds to an integer of the range is in range: half a step further than its ends.
    beyond = torch.maximum(scheme.qmin - zero_point - v, v - (scheme.qmax - zero_point)) - 0.5
    assert x.grad is not None
    assert torch.equal(x.grad[beyond < -1e-3], upstream[beyond < -1e-3])
    assert bool((x.grad[beyond > 1e-3] == 0).all())


def test_gradients_at_the_ends() -> None:
    """int3 holds -4..3, here times 0.5 and around the zero point 1: -2.5 to 1."""
    scheme = Scheme("int3")
    qparams = QParams(torch.tensor(0.5), torch.tensor(1, dtype=torch.int32), scheme)
    x = torch.tensor([-9.0, -3.0, -2.5, -2.4, 0.0, 0.9, 1.0, 1.5, 9.0], requires_grad=True)
    y = rounding.fake_quantize(x, qparams)
    y.sum().backward()
    assert y.tolist() == [-2.5, -2.5, -2.5, -2.5, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_in_float32(dtype: torch.dtype) -> None:
    scheme = Scheme("int8", symmetric=True)
    qparams = QParams(torch.tensor(0.01), torch.tensor(0, dtype=torch.int32), scheme)
    x = torch.tensor([0.5, -0.25, 9.0], dtype=dtype, requires_grad=True)
    for y in (
        rounding.fake_quantize(x, qparams),
        rounding.fake_quantize_learned(x, qparams, 1.0),
    ):
        assert y.dtype == torch.float32
        torch.testing.assert_close(y, torch.tensor([0.5, -0.25, 1.27]))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert x.grad.tolist() == [1.0, 1.0, 0.0]


@given(schemes, seeds, st.sampled_from([1.0, 0.1, 1e-3]))
def test_a_learned_scale_gives_the_same_values(scheme: Scheme, seed: int, slow: float) -> None:
    x, qparams = made(scheme, seed)
    learned = replace(qparams, scale=qparams.scale.requires_grad_())
    found = rounding.fake_quantize_learned(x, learned, slow)
    scale = spread(qparams.scale.detach(), scheme)
    v = x / scale
    from_half = (v - v.floor() - 0.5).abs()
    expected = affine.fake_quantize(x, qparams)
    close = from_half > 1e-4
    torch.testing.assert_close(found[close], expected[close], rtol=1e-6, atol=0)
    assert bool(((found - expected).abs() <= 1.001 * scale).all())


@given(schemes, seeds)
def test_how_slow_a_scale_learns_is_not_seen_in_values(scheme: Scheme, seed: int) -> None:
    x, qparams = made(scheme, seed)
    expected = rounding.fake_quantize_learned(x, qparams, 1.0)
    assert torch.equal(rounding.fake_quantize_learned(x, qparams, 0.0123), expected)


@given(schemes, seeds, st.sampled_from([1.0, 0.03]))
def test_learned_gradients_are_the_published_ones(scheme: Scheme, seed: int, slow: float) -> None:
    """Esser et al. 2020, equations 3 and 5."""
    x, qparams = made(scheme, seed)
    upstream = torch.randn(x.shape)
    x.requires_grad_()
    scale = qparams.scale.clone().requires_grad_()
    y = rounding.fake_quantize_learned(x, replace(qparams, scale=scale), slow)
    y.backward(upstream)
    v = x.detach() / spread(qparams.scale, scheme)
    low = (scheme.qmin - spread(qparams.zero_point, scheme)).to(torch.float32)
    high = (scheme.qmax - spread(qparams.zero_point, scheme)).to(torch.float32)
    inside = (v > low) & (v < high)
    by_scale = torch.where(inside, torch.round(v) - v, torch.where(v <= low, low, high))
    assert x.grad is not None
    assert scale.grad is not None
    torch.testing.assert_close(x.grad, upstream * inside, rtol=1e-5, atol=1e-6)
    # A sum of terms of either sign is as exact as its terms are.
    torch.testing.assert_close(
        scale.grad, slow * summed(upstream * by_scale, scheme), rtol=1e-4, atol=1e-3 * slow
    )


def test_gradients_of_a_learned_scale_by_hand() -> None:
    """int3 symmetric, scale 0.5: of 0.6, 5 and -5 the derivatives are 1 - 1.2, 3 and -4."""
    scheme = Scheme("int3", symmetric=True)
    x = torch.tensor([0.6, 5.0, -5.0], requires_grad=True)
    for index, expected in enumerate([-0.2, 3.0, -4.0]):
        scale = torch.tensor(0.5, requires_grad=True)
        qparams = QParams(scale, torch.tensor(0, dtype=torch.int32), scheme)
        y = rounding.fake_quantize_learned(x, qparams, 0.25)
        y[index].backward()
        assert scale.grad is not None
        assert scale.grad.item() == pytest.approx(0.25 * expected, rel=1e-5)
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 0.0, 0.0]


def test_a_learned_range_includes_its_ends() -> None:
    """As that of `fake_quantize` does, and with the derivative ``round(v) - v``, which is 0."""
    scheme = Scheme("int3", symmetric=True)
    x = torch.tensor([1.5, -2.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    qparams = QParams(scale, torch.tensor(0, dtype=torch.int32), scheme)
    rounding.fake_quantize_learned(x, qparams, 1.0).sum().backward()
    assert x.grad is not None
    assert scale.grad is not None
    assert x.grad.tolist() == [1.0, 1.0]
    assert scale.grad.item() == 0.0


@given(schemes, seeds)
@settings(max_examples=50)
def test_the_gradient_of_a_scale_is_a_difference_and_the_straight_through_part(
    scheme: Scheme, seed: int
) -> None:
    """While no integer changes, the value is ``round(v) * scale``: that part of the derivative is
    the difference quotient of the values themselves. Passing the rounding straight through adds
    ``-v`` for each value in range, and nothing for those that are clipped.
    """
    # A power of two and few digits more: products with integers are exact, and so are quotients.
    _, qparams = made(replace(scheme, power_of_two=True), seed)
    low = scheme.qmin - spread(qparams.zero_point, scheme)
    high = scheme.qmax - spread(qparams.zero_point, scheme)
    # Integers of the range and beyond, each 0.3 aside: so small a change of scale moves none.
    integers = low - 3 + (torch.rand(ROWS, COLUMNS) * (high - low + 6)).floor()
    v = integers + 0.3
    x = v * spread(qparams.scale, scheme)
    upstream = torch.randn(x.shape)

    def values(scale: Tensor) -> Tensor:
        return rounding.fake_quantize_learned(x, replace(qparams, scale=scale), 1.0)

    small = 2.0**-11
    up, down = values(qparams.scale * (1 + small)), values(qparams.scale * (1 - small))
    quotient = (up.double() - down.double()) / (2 * small * spread(qparams.scale, scheme))
    inside = (v > low) & (v < high)
    expected = upstream * (quotient - torch.where(inside, v, 0.0))
    scale = qparams.scale.clone().requires_grad_()
    values(scale).backward(upstream)
    assert scale.grad is not None
    torch.testing.assert_close(
        scale.grad.double(), summed(expected, scheme), rtol=1e-4, atol=1e-5 * (high - low).max()
    )


@given(
    st.integers(2, 8),
    st.booleans(),
    st.booleans(),
    seeds,
    st.sampled_from([(6,), (3, 5), (2, 3, 4)]),
)
def test_a_dynamic_range_has_nothing_outside_of_it(
    bits: int, symmetric: bool, per_token: bool, seed: int, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(seed)
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    x = torch.randn(shape, requires_grad=True)
    upstream = torch.randn(shape)
    y = rounding.fake_quantize_dynamic(x, *ends, symmetric, per_token)
    y.backward(upstream)
    expected = octavo_operators.fake_quantize_dynamic(x.detach(), *ends, symmetric, per_token)
    assert torch.equal(y, expected)
    assert x.grad is not None
    assert torch.equal(x.grad, upstream)


@pytest.mark.parametrize(
    ("mask", "causal", "scale", "gqa"),
    [
        (None, False, None, False),
        (None, True, 0.3, False),
        ("boolean", False, None, False),
        ("added", False, 0.7, False),
        (None, False, None, True),
    ],
)
def test_attention_has_the_rounded_value_and_the_smooth_gradient(
    mask: str | None, causal: bool, scale: float | None, gqa: bool
) -> None:
    heads = 2 if gqa else 4
    q = torch.randn(2, 4, 5, 8, requires_grad=True)
    k, v = (torch.randn(2, heads, 5, 8, requires_grad=True) for _ in range(2))
    added = torch.randn(5, 5)
    # Each target sees itself: a row of which nothing is seen has no probabilities.
    seen = (added > 0) | torch.eye(5, dtype=torch.bool)
    masks = {None: None, "boolean": seen, "added": added}
    upstream = torch.randn(2, 4, 5, 8)
    y = rounding.attention(q, k, v, masks[mask], causal, scale, gqa, 255)
    smooth = functional.scaled_dot_product_attention(
        q, k, v, masks[mask], 0.0, causal, scale=scale, enable_gqa=gqa
    )
    found = torch.autograd.grad(y, (q, k, v), upstream)
    expected = torch.autograd.grad(smooth, (q, k, v), upstream)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        rounded = octavo_operators.attention(q, k, v, masks[mask], causal, scale, gqa, 255)
    torch.testing.assert_close(y, rounded, rtol=0, atol=1e-7)
    assert not torch.allclose(y, smooth, rtol=0, atol=1e-6)
