"""Convolutions of volumes in native programs, against torch's in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.runtimes.native.convolution import Convolution, Epilogue, Geometry, unpack
from octavo.runtimes.native.program import Program
from octavo.runtimes.native.volumes import Depth, Volume, as_images, weight_of

pytestmark = pytest.mark.usefixtures("instruction_set")

ZERO_POINT = 7
DEPTHS = st.builds(
    Depth, st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(1, 2)
)
# Groups, channels of a group before and behind, taps, padding and stride of images.
IMAGES = st.tuples(
    st.sampled_from([1, 1, 2]),
    st.sampled_from([1, 3, 8]),
    st.sampled_from([1, 5, 16]),
    st.integers(1, 3),
    st.integers(0, 1),
    st.integers(1, 2),
)


def layer(depth: Depth, images: tuple[int, ...], weight: Tensor, bias: Tensor, **out: float):
    groups, inputs, outputs, taps, padding, stride = images
    geometry = Geometry(
        groups * inputs * depth.kernel,
        groups * outputs,
        (taps, taps),
        (stride, stride),
        (padding,) * 4,
        groups=groups,
    )
    epilogue = Epilogue(torch.full((groups * outputs,), 0.01), bias, **out)
    return Volume(Convolution.of(geometry, as_images(weight), ZERO_POINT, epilogue), depth)


@given(DEPTHS, IMAGES, st.tuples(*[st.integers(1, 5)] * 3), st.booleans())
@settings(max_examples=25, deadline=None)
def test_every_window_gives_what_torch_gives(depth, images, size, rounded):
    groups, inputs, outputs, taps, padding, stride = images
    assume(depth.output(size[0]) > 0 and min(size[1:]) + 2 * padding >= taps)
    shape = (groups * outputs, inputs, depth.kernel, taps, taps)
    weight = torch.randint(-127, 128, shape, dtype=torch.int8)
    bias = torch.randn(groups * outputs)
    x = torch.randint(0, 256, (2, groups * inputs, *size), dtype=torch.uint8)
    strides, paddings = (depth.stride, stride, stride), (depth.padding, padding, padding)
    dilations = (depth.dilation, 1, 1)
    wanted = F.conv3d(
        x.double() - ZERO_POINT,
        weight.double() * 0.01,
        bias.double(),
        strides,
        paddings,
        dilations,
        groups,
    )
    out = {"out_scale": 0.5, "out_zero_point": 100} if rounded else {}
    volume = layer(depth, images, weight, bias, **out)
    result = Program.of(volume, 1)(x)
    assert result.is_contiguous(memory_format=torch.channels_last_3d)
    if rounded:
        steps = (wanted / 0.5 + 100).clamp(0, 255)
        assert float((result.double() - steps).abs().max()) <= 0.5001
    else:
        torch.testing.assert_close(result.double(), wanted, rtol=1e-5, atol=1e-4)
    geometry = volume.images.geometry
    assert torch.equal(weight_of(unpack(geometry, volume.images.weights), depth.kernel), weight)


def test_volumes_that_do_not_fit_are_refused():
    weight = torch.zeros(1, 3, 3, 1, 1, dtype=torch.int8)
    volume = layer(Depth(3), (1, 3, 1, 1, 0, 1), weight, torch.zeros(1))
    program = Program.of(volume, 1)
    with pytest.raises(RuntimeError, match="a volume of 2 x 4 x 4 is too small"):
        program(torch.zeros(1, 3, 2, 4, 4, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="an input of 2 channels"):
        program(torch.zeros(1, 2, 4, 4, 4, dtype=torch.uint8))
