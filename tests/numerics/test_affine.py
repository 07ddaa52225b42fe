"""The law of the quantized value, for every scheme.

Inside the range ``|x - dequantize(quantize(x))| <= scale / 2``; zero is exact; quantize is monotone
and idempotent.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from octavo.errors import CalibrationError, PlanError
from octavo.numerics.affine import (
    QParams,
    blocks,
    broadcast,
    dequantize,
    fake_quantize,
    qparams_of_range,
    quantize,
)
from octavo.numerics.dtypes import QDTYPES, qdtype
from octavo.numerics.scheme import Scheme

# Rounding in float32, in steps, for each integer of the range: a relative error of some 2**-23.
ROUNDING = 2e-4 / 255

CHANNELS = 3

schemes = st.builds(
    lambda dtype, symmetric, narrow, reduced, power, axis: Scheme(
        dtype,
        symmetric=symmetric,
        channel_axis=axis,
        narrow_range=narrow and qdtype(dtype).signed,
        reduce_range=reduced and dtype != "int2",
        power_of_two=power,
    ),
    st.sampled_from(sorted(QDTYPES)),
    *[st.booleans()] * 4,
    st.sampled_from([None, 0]),
)
bounds = st.floats(-(2.0**99), 2.0**99, width=32)


@st.composite
def quantized(draw: st.DrawFn) -> tuple[QParams, Tensor, Tensor]:
    """Parameters, and the range that they were made of, ``[]`` or ``[channels]``."""
    scheme = draw(schemes)
    shape = () if scheme.channel_axis is None else (CHANNELS,)
    count = math.prod(shape)
    ends = draw(st.lists(st.tuples(bounds, bounds), min_size=count, max_size=count))
    low, high = torch.tensor([sorted(pair) for pair in ends]).unbind(1)
    low, high = low.reshape(shape), high.reshape(shape)
    return qparams_of_range(low, high, scheme), low, high


def apply(p: QParams, x: Tensor) -> Tensor:
    """Quantize ``[n]`` or ``[channels, n]`` values."""
    scale, zero_point = (broadcast(v, x.dim(), p.scheme.channel_axis) for v in shaped(p))
    return quantize(x, scale, zero_point, p.scheme.qmin, p.scheme.qmax)


def revert(p: QParams, q: Tensor) -> Tensor:
    scale, zero_point = (broadcast(v, q.dim(), p.scheme.channel_axis) for v in shaped(p))
    return dequantize(q, scale, zero_point)


def shaped(p: QParams) -> tuple[Tensor, Tensor]:
    return p.scale, p.zero_point


def inside(low: Tensor, high: Tensor, steps: int = 41) -> Tensor:
    """Values from end to end of the range, ``[n]`` or ``[channels, n]``, and zero."""
    share = torch.linspace(0, 1, steps)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    values = low[..., None] * (1 - share) + high[..., None] * share
    return torch.cat([values, torch.zeros_like(values[..., :1])], dim=-1)


@given(quantized())
def test_the_error_is_at_most_half_a_step_inside_the_range(case: tuple) -> None:
    p, low, high = case
    x = inside(low, high)
    error = (x.double() - revert(p, apply(p, x)).double()).abs()
    steps = error / broadcast(p.scale, x.dim(), p.scheme.channel_axis)
    assert steps.max() <= 0.5 + ROUNDING * (p.scheme.qmax - p.scheme.qmin)


@given(quantized())
def test_zero_is_exact(case: tuple) -> None:
    p, low, _ = case
    zero = torch.zeros(*low.shape, 1)
    q = apply(p, zero)
    assert torch.equal(q.flatten(), p.zero_point.to(torch.float32).flatten())
    assert torch.equal(revert(p, q), zero)


@given(quantized())
def test_quantize_is_monotone_and_stays_in_its_range(case: tuple) -> None:
    p, low, high = case
    x = inside(low * 3 - 1, high * 3 + 1).sort(dim=-1).values
    q = apply(p, x)
    assert bool((q.diff(dim=-1) >= 0).all())
    assert p.scheme.qmin <= q.min()
    assert q.max() <= p.scheme.qmax


@given(quantized())
def test_every_integer_comes_back_to_itself(case: tuple) -> None:
    p, low, _ = case
    q = torch.arange(p.scheme.qmin, p.scheme.qmax + 1, dtype=torch.float32)
    q = q.expand(*low.shape, -1)
    x = revert(p, q)
    assume(bool(torch.isfinite(x).all()))
    assert torch.equal(apply(p, x), q)


@given(quantized())
def test_parameters_are_float32_and_int32_in_the_integer_range(case: tuple) -> None:
    p, low, _ = case
    assert (p.scale.dtype, p.zero_point.dtype) == (torch.float32, torch.int32)
    assert p.scale.shape == p.zero_point.shape == low.shape
    assert bool((p.scale > 0).all())
    assert bool(((p.zero_point >= p.scheme.qmin) & (p.zero_point <= p.scheme.qmax)).all())


@given(quantized())
def test_a_symmetric_zero_point_is_fixed(case: tuple) -> None:
    p, _, _ = case
    assume(p.scheme.symmetric)
    unsigned = (p.scheme.qmax + 1) // 2
    assert set(p.zero_point.flatten().tolist()) == {0 if p.scheme.integers.signed else unsigned}


@given(quantized())
def test_channels_do_not_mix(case: tuple) -> None:
    p, low, high = case
    assume(p.scheme.channel_axis == 0)
    for index in range(CHANNELS):
        alone = qparams_of_range(low[index], high[index], p.scheme)
        assert alone.scale == p.scale[index]
        assert alone.zero_point == p.zero_point[index]


@pytest.mark.parametrize(
    ("low", "high", "scheme", "scale", "zero_point"),
    [
        # (high - low) / 255 and -low / scale, by hand.
        (-1.0, 3.0, Scheme("uint8"), 4 / 255, 64),
        (-1.0, 3.0, Scheme("int8"), 4 / 255, -64),
        (-1.0, 3.0, Scheme("uint8", reduce_range=True), 4 / 127, 32),
        (-1.0, 3.0, Scheme("int8", symmetric=True), 3 / 127.5, 0),
        (-1.0, 3.0, Scheme("int8", symmetric=True, narrow_range=True), 3 / 127, 0),
        (-1.0, 3.0, Scheme("uint8", symmetric=True), 3 / 127.5, 128),
        # A range without zero is extended to it.
        (2.0, 3.0, Scheme("uint8"), 3 / 255, 0),
        (-3.0, -2.0, Scheme("uint8"), 3 / 255, 255),
    ],
)
def test_parameters_by_hand(
    low: float, high: float, scheme: Scheme, scale: float, zero_point: int
) -> None:
    p = qparams_of_range(torch.tensor(low), torch.tensor(high), scheme)
    assert p.scale.item() == pytest.approx(scale, rel=1e-6)
    assert p.zero_point.item() == zero_point


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_tensor_of_zeros_has_a_scale_that_can_be_divided_by(symmetric: bool) -> None:
    p = qparams_of_range(torch.zeros(2), torch.zeros(2), Scheme("uint8", symmetric, 0))
    assert bool((p.scale > 0).all())
    # The scale of an int8 kernel's sums is a product of two, which must not vanish.
    assert bool((p.scale * p.scale >= torch.finfo(torch.float32).tiny).all())


def test_values_outside_the_range_saturate() -> None:
    p = qparams_of_range(torch.tensor(-1.0), torch.tensor(3.0), Scheme("uint8"))
    assert apply(p, torch.tensor([-100.0, 100.0, -math.inf, math.inf])).tolist() == [0, 255, 0, 255]


def test_halves_round_to_even() -> None:
    halves = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert quantize(halves, 1.0, 10, 0, 255).tolist() == [10, 12, 12, 10, 8]


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (math.nan, 1.0, "is not finite"),
        (-1.0, math.inf, "is not finite"),
        (-math.inf, 1.0, "is not finite"),
        (-3e38, 3e38, "is not finite"),  # its width is more than float32 holds
        (1.0, -1.0, "is empty"),
    ],
)
def test_an_impossible_range_is_an_error(low: float, high: float, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        qparams_of_range(torch.tensor(low), torch.tensor(high), Scheme("uint8"))
    channels = torch.tensor([0.0, low]), torch.tensor([1.0, high])
    with pytest.raises(CalibrationError, match=message):  # one bad channel is enough
        qparams_of_range(*channels, Scheme("uint8", channel_axis=0))


def test_broadcast_puts_values_along_an_axis() -> None:
    values = torch.arange(3)
    assert broadcast(values, 4, 1).shape == (1, 3, 1, 1)
    assert broadcast(values, 2, -1).shape == (1, 3)
    assert broadcast(values, 4, None) is values
    assert broadcast(torch.tensor(1), 4, 0).shape == ()


@given(low=st.floats(-1e6, 0, width=32), high=st.floats(0, 1e6, width=32), symmetric=st.booleans())
def test_a_power_of_two_scale_is_the_next_above(low: float, high: float, symmetric: bool) -> None:
    bounds = torch.tensor(low), torch.tensor(high)
    plain = qparams_of_range(*bounds, Scheme("int8", symmetric=symmetric)).scale.item()
    power = qparams_of_range(*bounds, Scheme("int8", symmetric=symmetric, power_of_two=True))
    exponent = math.log2(power.scale.item())
    assert exponent == round(exponent)
    assert plain * 0.999999 <= power.scale.item() < plain * 2.000001


def test_blocks_of_a_weight_in_groups() -> None:
    weight = torch.arange(24.0).reshape(2, 12)
    rows, axis = blocks(weight, Scheme("int4", group_size=4))
    assert axis == 0
    assert rows.tolist()[1] == [4.0, 5.0, 6.0, 7.0]
    with pytest.raises(PlanError, match=r"group_size 5 does not divide the 12 input channels"):
        blocks(weight, Scheme("int4", group_size=5))


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme("int8", symmetric=True),
        Scheme("int8", symmetric=True, channel_axis=1),
        Scheme("uint4", group_size=4),
    ],
    ids=str,
)
def test_fake_quantize_rounds_to_half_a_step(scheme: Scheme) -> None:
    x = torch.randn(6, 12)
    rows, axis = blocks(x, scheme)
    low, high = (x.min(), x.max()) if axis is None else rows.movedim(axis, 0).aminmax(dim=1)
    p = qparams_of_range(low, high, scheme)
    if scheme.group_size:
        p = QParams(p.scale.reshape(6, 3), p.zero_point.reshape(6, 3), scheme)
    step = broadcast(p.scale.flatten() if axis is not None else p.scale, 2, axis)
    error = blocks(fake_quantize(x, p) - x, scheme)[0].abs()
    assert (error <= step * 0.5001).all()
    assert error.max() > 0
