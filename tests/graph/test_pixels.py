"""`Pixels`: what a user gives, as two constants for each channel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.errors import InputError
from octavo.graph.pixels import Pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_pixels_are_normalized_as_torchvision_does():
    x = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    got = Pixels(1 / 255, MEAN, STD).normalized(x)
    torch.testing.assert_close(got, (x / 255 - mean) / std, rtol=0, atol=1e-6)


def test_one_number_is_for_all_channels():
    factor, offset = Pixels(0.5, mean=(3.0,), std=(1.0, 2.0)).constants(2)
    assert factor.tolist() == [[[0.5]], [[0.25]]]
    assert offset.tolist() == [[[-3.0]], [[-1.5]]]


def test_what_may_be_given():
    assert Pixels.given() is None
    assert Pixels.given(mean=0) == Pixels(1 / 255, (0.0,), (1.0,))
    assert Pixels.given(std=np.array([1, 2])) == Pixels(std=(1.0, 2.0))
    pixels = Pixels.given(torch.tensor(2.0), torch.tensor([1.0, 2.0]), [3, 4])
    assert pixels == Pixels(2.0, (1.0, 2.0), (3.0, 4.0))
    assert Pixels.given(**pixels.to_dict()) == pixels


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"std": (0.2, 0.0, 0.2)}, r"input_std is \(0.2, 0.0, 0.2\); give numbers above zero"),
        ({"std": -1}, "input_std is .* above zero"),
        ({"scale": 0}, "input_scale is .* above zero"),
        ({"scale": (1, 2)}, "input_scale is .* one number for all channels"),
        ({"mean": float("nan")}, r"input_mean is \(nan,\); give finite numbers"),
        ({"std": float("inf")}, "input_std is .* finite"),
        ({"mean": ()}, "input_mean is .* finite numbers: one for each channel"),
        ({"mean": "grey"}, "input_mean is 'grey'; give a number, or a sequence"),
        ({"scale": object()}, "input_scale is <object.*; give a number"),
    ],
)
def test_what_may_not(given, message):
    with pytest.raises(InputError, match=message):
        Pixels.given(**given)


def test_another_number_of_channels():
    with pytest.raises(InputError, match=r"input_mean has 3 numbers .* the image has 1 channels"):
        Pixels(mean=MEAN).normalized(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))


def test_a_record_is_read_again_and_others_are_refused():
    pixels = Pixels(1 / 127, (0.5,), (0.25, 0.5, 1.0))
    assert Pixels.from_dict(pixels.to_dict()) == pixels
    assert Pixels.from_dict(None) is None
    for data in ({"scale": 1}, [1], {"scale": 1, "mean": 0, "std": 1, "more": 2}):
        with pytest.raises(InputError, match="not a record of scale"):
            Pixels.from_dict(data)
