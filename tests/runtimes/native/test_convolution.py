from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from octavo.runtimes.native.convolution import (
    Activation,
    Convolution,
    Epilogue,
    Geometry,
    unpack,
)

FUNCTIONS = {
    Activation.NONE: lambda x: x,
    Activation.CLIP: lambda x: x.clamp(-0.5, 1.25),
    Activation.HARDSWISH: F.hardswish,
    Activation.HARDSIGMOID: F.hardsigmoid,
    Activation.SILU: F.silu,
    Activation.SIGMOID: torch.sigmoid,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Activation.TANH: torch.tanh,
    Activation.RELU: F.relu,
}
quickly = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Case:
    """A layer of random integers, images for it, and the result in exact arithmetic."""

    def __init__(self, geometry, size=(1, 5, 5), zero_point=7, seed=0, weights=127, **epilogue):
        chance = torch.Generator().manual_seed(seed)

        def integers(low, high, *shape):
            return torch.randint(low, high, shape, generator=chance)

        self.geometry, self.zero_point = geometry, zero_point
        self.x = integers(0, 256, *size, geometry.in_channels).to(torch.uint8)
        self.weight = integers(-weights - 1, weights + 1, *geometry.weight_shape).to(torch.int8)
        channels = geometry.out_channels
        # The larger a sum, the smaller its scale: results are some units large.
        scales = (torch.rand(channels, generator=chance) + 0.1) / 3e4
        scales /= math.sqrt(self.weight[0].numel())
        bias = torch.randn(channels, generator=chance) / 4
        self.epilogue = Epilogue(scales, bias, clip=(-0.5, 1.25), **epilogue)
        shape = (size[0], *geometry.output(*size[1:]), channels)
        added = self.epilogue.addend is not None
        self.addend = integers(0, 256, *shape).to(torch.uint8) if added else None

    def sums(self):
        """The products' sums, as float64, which is exact."""
        top, left, bottom, right = self.geometry.padding
        x = (self.x.double() - self.zero_point).permute(0, 3, 1, 2)
        weight = self.weight.double().permute(0, 3, 1, 2)
        g = self.geometry
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, weight, None, g.stride, 0, g.dilation, g.groups).permute(0, 2, 3, 1)

    def expected(self):
        e = self.epilogue
        value = self.sums() * e.scales.double() + e.bias.double()
        if e.addend is not None:
            value = value + (self.addend.double() - e.addend[1]) * e.addend[0]
        value = FUNCTIONS[e.activation](value)
        if e.out_scale:
            steps = (value / e.out_scale).round() + e.out_zero_point
            value = steps.clamp(e.out_low, e.out_high)
        return value

    def found(self):
        layer = Convolution.of(self.geometry, self.weight, self.zero_point, self.epilogue)
        assert torch.equal(unpack(self.geometry, layer.weights), self.weight)
        return layer(self.x, self.addend)

    def agrees(self):
        expected, found = self.expected(), self.found()
        assert found.shape == expected.shape
        error = (found.double() - expected).abs()
        if self.epilogue.out_scale:
            # A value on the edge between two integers may go to either.
            assert float(error.max()) <= 1
            assert int((error > 0).sum()) <= 2 + error.numel() // 500
        else:
            assert float((error / (1 + expected.abs())).max()) < 1e-5


@st.composite
def cases(draw, depthwise=False):
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    groups = draw(st.integers(1, 150)) if depthwise else draw(st.sampled_from([1, 1, 1, 2, 3, 8]))
    channels = [groups * (1 if depthwise else draw(st.integers(1, 70 // groups))) for _ in "io"]
    geometry = Geometry(
        *channels,
        kernel=kernel,
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=tuple(draw(st.integers(0, 4)) for _ in range(4)),
        dilation=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        groups=groups,
    )
    size = (draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(1, 33)))
    assume(min(geometry.output(*size[1:])) > 0)
    out = draw(st.sampled_from([{}, {"out_scale": 0.0117, "out_zero_point": 100}]))
    if out:
        out |= draw(st.sampled_from([{}, {"out_low": 20, "out_high": 200}]))
    return Case(
        geometry,
        size,
        zero_point=draw(st.sampled_from([0, 1, 128, 255])),
        seed=draw(st.integers(0, 99)),
        weights=draw(st.sampled_from([127, 63])),
        activation=draw(st.sampled_from(Activation)),
        addend=draw(st.sampled_from([None, (0.01, 131)])),
        **out,
    )


@quickly
@given(case=cases())
def test_convolutions_are_those_of_exact_arithmetic(instruction_set, case):
    case.agrees()


@settings(quickly, max_examples=300)
@given(case=cases())
def test_convolutions_in_tiles_of_amx_are_those_of_exact_arithmetic(acted_out, case):
    case.agrees()


@quickly
@given(rows=st.integers(1, 40), columns=st.integers(1, 300), channels=st.integers(1, 100))
def test_linear_layers_in_tiles_of_amx_are_those_of_exact_arithmetic(
    acted_out, rows, columns, channels
):
    out = {"out_scale": 0.01, "out_zero_point": 30}
    Case(Geometry(columns, channels), (rows, 1, 1), **out).agrees()


@quickly
@given(case=cases(depthwise=True))
def test_depthwise_convolutions_are_those_of_exact_arithmetic(instruction_set, case):
    case.agrees()


@pytest.mark.parametrize(("kernel", "stride"), [(1, 21), (2, 11), (2, 12), (4, 11), (4, 12)])
def test_depthwise_windows_far_from_each_other(instruction_set, kernel, stride):
    geometry = Geometry(64, 64, (kernel, kernel), (stride, stride), groups=64)
    Case(geometry, (1, kernel, 5 * stride), out_scale=0.0117, out_zero_point=3).agrees()


ENDINGS = {
    "bare": {"out_scale": 1.25 / 255, "activation": Activation.CLIP},
    "cut": {"out_scale": 0.0117, "out_zero_point": 100, "activation": Activation.CLIP},
    "added": {"out_scale": 0.0117, "out_zero_point": 100, "addend": (0.003, 90)},
    "silu": {"out_scale": 0.0117, "out_zero_point": 24, "activation": Activation.SILU},
    "hardswish": {"out_scale": 0.0117, "out_zero_point": 32, "activation": Activation.HARDSWISH},
    "sigmoid": {"out_scale": 1 / 255, "activation": Activation.SIGMOID},
}


@pytest.mark.parametrize("channels", [16, 32])
@pytest.mark.parametrize(("kernel", "width"), [((3, 3), 3), ((3, 3), 37), ((5, 3), 61)])
@pytest.mark.parametrize("ending", ENDINGS)
def test_depthwise_layers_of_few_channels(instruction_set, channels, kernel, width, ending):
    """With AVX512 neighbours share a register, but the last ones of a row."""
    geometry = Geometry(channels, channels, kernel, padding=(1, 1, 1, 1), groups=channels)
    Case(geometry, (2, 5, width), zero_point=3, **ENDINGS[ending]).agrees()


@pytest.mark.parametrize("groups", [1, 72])
@pytest.mark.parametrize("ending", ENDINGS)
def test_each_ending_of_many_channels(instruction_set, groups, ending):
    geometry = Geometry(72, 72, (3, 3), padding=(1, 1, 1, 1), groups=groups)
    Case(geometry, (2, 5, 9), zero_point=3, **ENDINGS[ending]).agrees()


@pytest.mark.parametrize("channels", [5, 16, 40])
def test_values_beyond_all_integers_are_cut_at_no_zero_point(instruction_set, channels):
    """All of uint8 is stored, but for one channel values are beyond int32."""
    bias = torch.zeros(channels)
    bias[1::3], bias[2::3] = 3e38, -3e38
    epilogue = Epilogue(torch.full((channels,), 1e-3), bias, out_scale=0.01)
    x = torch.zeros(1, 5, 7, channels, dtype=torch.uint8)
    for groups in (1, channels):
        geometry = Geometry(channels, channels, groups=groups)
        weight = torch.ones(geometry.weight_shape, dtype=torch.int8)
        found = Convolution.of(geometry, weight, 0, epilogue)(x)
        expected = (bias > 0).to(torch.uint8) * 255
        assert torch.equal(found, expected.expand_as(found))


@pytest.mark.parametrize("groups", [1, 40])
def test_the_hard_swish_of_what_is_far_below_0_is_0(instruction_set, groups):
    """Such values are infinite in steps of the result, and no number times 0."""
    bias = torch.zeros(40)
    bias[1::3], bias[2::3] = 3e38, -3e38
    out = {"activation": Activation.HARDSWISH, "out_scale": 0.01, "out_zero_point": 24}
    epilogue = Epilogue(torch.full((40,), 1e-3), bias, **out)
    geometry = Geometry(40, 40, groups=groups)
    weight = torch.ones(geometry.weight_shape, dtype=torch.int8)
    x = torch.zeros(1, 5, 7, 40, dtype=torch.uint8)
    found = Convolution.of(geometry, weight, 0, epilogue)(x)
    expected = torch.where(bias > 0, 255, 24).to(torch.uint8)
    assert torch.equal(found, expected.expand_as(found))


@pytest.mark.parametrize("channels", [5, 16, 24, 32, 40])
def test_values_beyond_all_integers_are_cut(instruction_set, channels):
    """As large as floats get, and NaN, which is the lowest."""
    bias = torch.tensor([3e38, -3e38, float("inf"), float("-inf"), float("nan"), 0.0, 1e9, -1e9])
    epilogue = Epilogue(
        torch.full((channels,), 1e-3),
        bias.repeat(channels)[:channels],
        out_scale=0.01,
        out_zero_point=120,
        out_low=3,
        out_high=250,
    )
    expected = torch.tensor([250, 3, 250, 3, 3, 120, 250, 3]).repeat(channels)[:channels]
    x = torch.zeros(1, 5, 7, channels, dtype=torch.uint8)
    for groups in (1, channels):
        geometry = Geometry(channels, channels, groups=groups)
        weight = torch.ones(geometry.weight_shape, dtype=torch.int8)
        found = Convolution.of(geometry, weight, 0, epilogue)(x)
        assert torch.equal(found, expected.to(torch.uint8).expand_as(found))


@quickly
@given(
    rows=st.integers(1, 400),
    columns=st.integers(1, 200),
    channels=st.integers(1, 100),
    threads=st.integers(1, 3),
    activation=st.sampled_from(Activation),
    weights=st.sampled_from([127, 63]),
)
def test_linear_layers_are_those_of_exact_arithmetic(
    instruction_set, rows, columns, channels, threads, activation, weights
):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = {"out_scale": 0.01, "out_zero_point": 30, "activation": activation}
        Case(Geometry(columns, channels), (rows, 1, 1), weights=weights, **out).agrees()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("channels", [48, 512])
@pytest.mark.parametrize("side", [7, 30])
def test_threads_share_pixels_or_channels(instruction_set, threads, channels, side):
    """A map that takes several bands, and one of few pixels."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        geometry = Geometry(64, channels, (3, 3), padding=(1, 1, 1, 1))
        Case(geometry, (2, side, side), out_scale=0.0117, out_zero_point=3).agrees()
    finally:
        torch.set_num_threads(before)


def test_rows_that_are_longer_than_a_thread_has_memory_for(instruction_set):
    geometry = Geometry(80, 3, (3, 3), padding=(1, 1, 1, 1))
    Case(geometry, (1, 3, 900), out_scale=0.0117, out_zero_point=3).agrees()


@pytest.mark.parametrize("value", [-128, 127, -64, 64])
@pytest.mark.parametrize("groups", [1, 32])
def test_the_largest_sums_do_not_overflow(instruction_set, value, groups):
    taps = (16, 64) if groups == 32 else (32, 64)
    case = Case(Geometry(32, 32, taps, groups=groups), (1, *taps), zero_point=0)
    case.x.fill_(255)
    case.weight.fill_(value)
    case.agrees()


def test_scales_and_bias_may_be_columns(instruction_set):
    case = Case(Geometry(8, 16))
    columns = torch.stack([case.epilogue.scales, case.epilogue.bias, torch.ones(16)], 1)
    case.epilogue = Epilogue(columns[:, 0], columns[:, 1])
    case.agrees()


def test_halves_of_steps_are_rounded_to_even(instruction_set):
    """Every odd sum is exactly a half of a step, whose inverse is no float; an odd zero point."""
    case = Case(Geometry(4, 16), (1, 4, 64), zero_point=0)
    scale = torch.full((16,), 51 / 512)
    out = {"out_scale": 51 / 256, "out_zero_point": 101}
    case.epilogue = Epilogue(scale, torch.zeros(16), **out)
    case.x.random_(0, 6)
    case.weight.random_(-4, 5)
    sums = case.sums()
    assert int((sums % 2).sum()) > 100
    assert torch.equal(case.found().double(), ((sums / 2).round() + 101).clamp(0, 255))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(16, 1, 1, 8)}, "int8"),
        ({"geometry": Geometry(8, 16, (3, 3))}, r"int8\[16, 3, 3, 8\] is expected"),
        ({"epilogue": Epilogue(torch.ones(15), torch.ones(16))}, r"float32\[16\] is expected"),
        ({"epilogue": Epilogue(torch.ones(16), torch.ones(15))}, "a bias of"),
    ],
)
def test_a_layer_that_does_not_fit_is_refused(instruction_set, change, message):
    case = Case(Geometry(8, 16))
    layer = {
        "geometry": case.geometry,
        "weight": case.weight,
        "in_zero_point": 0,
        "epilogue": case.epilogue,
    }
    with pytest.raises(ValueError, match=message):
        Convolution.of(**layer | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda case: replace_x(case, case.x.float()), "images of torch.float32"),
        (lambda case: replace_x(case, case.x[0]), "images of torch.uint8"),
        (lambda case: replace_x(case, case.x[..., :7]), "images of 7 channels"),
        (lambda case: setattr(case, "addend", case.x), "an addend"),
    ],
)
def test_images_that_do_not_fit_are_refused(instruction_set, change, message):
    case = Case(Geometry(8, 16))
    change(case)
    with pytest.raises(ValueError, match=message):
        case.found()


def replace_x(case, x):
    case.x = x
