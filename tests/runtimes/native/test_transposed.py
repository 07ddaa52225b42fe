"""Transposed convolutions in native programs, against torch's in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from octavo.runtimes.native.convolution import Activation, Convolution, Epilogue, unpack
from octavo.runtimes.native.program import Program
from octavo.runtimes.native.transposed import Transposed, Upscaling

pytestmark = pytest.mark.usefixtures("instruction_set")

ZERO_POINT = 7
PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def upscalings(draw: st.DrawFn) -> Upscaling:
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    inputs, outputs = (groups * draw(st.sampled_from([1, 3, 16])) for _ in range(2))
    stride = draw(PAIRS)
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    extra = draw(st.tuples(*(st.integers(0, s - 1) for s in stride)))
    return Upscaling(inputs, outputs, kernel, stride, padding, extra, groups)


def layer(up: Upscaling, weight: torch.Tensor, bias: torch.Tensor, **more: float) -> Transposed:
    scales = torch.full((up.out_channels,), 0.01)
    epilogue = Epilogue(up.repeated(scales), up.repeated(bias), **more)
    phases = Convolution.of(up.plain, up.phases_of(weight), ZERO_POINT, epilogue)
    return Transposed(phases, up)


def weight_of(up: Upscaling) -> torch.Tensor:
    shape = (up.in_channels, up.out_channels // up.groups, *up.kernel)
    return torch.randint(-127, 128, shape, dtype=torch.int8)


def exact(up: Upscaling, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    values, taps = x.double() - ZERO_POINT, weight.double() * 0.01
    places = (up.stride, up.padding, up.extra, up.groups)
    return F.conv_transpose2d(values, taps, bias.double(), *places)


@given(upscalings(), st.integers(1, 2), PAIRS, st.booleans())
@settings(max_examples=25, deadline=None)
def test_every_window_gives_what_torch_gives(up, batch, size, rounded):
    assume(min(up.output(*size)) > 0)
    weight, bias = weight_of(up), torch.randn(up.out_channels)
    x = torch.randint(0, 256, (batch, up.in_channels, *size), dtype=torch.uint8)
    wanted = exact(up, x, weight, bias)
    out = {"activation": Activation.CLIP, "clip": (0.0, 6.0), "out_scale": 0.05} if rounded else {}
    result = Program.of(layer(up, weight, bias, **out), 1)(x)
    assert result.is_contiguous(memory_format=torch.channels_last)
    if rounded:
        steps = wanted.clamp(0, 6) / 0.05
        assert result.dtype == torch.uint8
        assert float((result.double() - steps).abs().max()) <= 0.5001
    else:
        torch.testing.assert_close(result.double(), wanted, rtol=1e-5, atol=1e-4)


@given(upscalings())
@settings(max_examples=10, deadline=None)
def test_the_weight_is_given_back(up):
    weight = weight_of(up)
    packed = layer(up, weight, torch.zeros(up.out_channels)).phases.weights
    assert torch.equal(up.weight_of(unpack(up.plain, packed)), weight)


def test_sequences_are_images_of_height_1():
    up = Upscaling(6, 4, (1, 3), (1, 2), (0, 1), (0, 1))
    weight, bias = weight_of(up), torch.randn(4)
    x = torch.randint(0, 256, (2, 6, 9), dtype=torch.uint8)
    result = Program.of(layer(up, weight, bias), 1)(x)
    wanted = exact(up, x.unsqueeze(2), weight, bias).squeeze(2)
    assert result.shape == (2, 4, 18)
    torch.testing.assert_close(result.double(), wanted, rtol=1e-5, atol=1e-4)


def test_images_that_do_not_fit_are_refused():
    up = Upscaling(4, 4, (2, 2), (2, 2), (3, 3))
    program = Program.of(layer(up, weight_of(up), torch.zeros(4)), 1)
    with pytest.raises(RuntimeError, match="an image of 1 x 1 is too small"):
        program(torch.zeros(1, 4, 1, 1, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="an input of 3 channels"):
        program(torch.zeros(1, 3, 9, 9, dtype=torch.uint8))
