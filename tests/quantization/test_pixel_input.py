"""A graph that takes pixels computes what it computed of normalized floats."""

from __future__ import annotations

import pytest
import torch
from running import run_graph
from torch import nn

import octavo
from octavo.errors import InputError
from octavo.graph.graph import TensorMeta
from octavo.graph.pixels import Pixels
from octavo.quantization.pixel_input import take_pixels

PIXELS = Pixels(1 / 255, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


class Several(nn.Module):
    """A vector, an image that leaves the model too, and a map of the same shape."""

    def forward(self, v, image, other):
        return image, image.mean((1, 2, 3)) * v, image * other


def test_whatever_read_the_image_reads_it_normalized():
    v, x = torch.randn(2), torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    other, floats = torch.randn(2, 3, 4, 4), PIXELS.normalized(x)
    graph = octavo.capture(Several(), (v, floats, other))
    taking = take_pixels(graph, PIXELS)
    assert [given.meta.dtype for given in taking.inputs] == ["float32", "uint8", "float32"]
    assert graph.inputs[1].meta.dtype == "float32"
    for got, expected in zip(
        run_graph(taking, v, x, other), run_graph(graph, v, floats, other), strict=True
    ):
        assert torch.equal(got, expected)


def test_new_names_stay_clear_of_the_models():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Module()
            self.x.factor = nn.Parameter(torch.full((3, 1, 1), 2.0))

        def forward(self, x):
            return x * self.x.factor

    x = torch.randint(0, 256, (1, 3, 2, 2), dtype=torch.uint8)
    graph = octavo.capture(Named(), PIXELS.normalized(x))
    taking = take_pixels(graph, PIXELS)
    assert len(taking.constants) == 3
    assert torch.equal(run_graph(taking, x), 2 * PIXELS.normalized(x))


@pytest.mark.parametrize(
    ("example", "found"),
    [
        (torch.randn(2, 3), r"'input' float32\[N, input_1\]"),
        (
            torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
            r"'input' uint8\[N, input_1, input_2, input_3\]",
        ),
    ],
)
def test_without_an_image_there_is_nothing_to_take(example, found):
    graph = octavo.capture(nn.ReLU(), example)
    with pytest.raises(InputError, match=f"no image input.* it takes {found}; leave input_scale"):
        take_pixels(graph, PIXELS)


def test_another_number_of_channels():
    graph = octavo.capture(nn.ReLU(), torch.randn(2, 4, 4, 4))
    with pytest.raises(InputError, match=r"input_mean has 3 numbers .* the image has 4 channels"):
        take_pixels(graph, PIXELS)
    taking = take_pixels(graph, Pixels(mean=(1.0,)))
    assert taking.inputs[0].meta == TensorMeta((None, 4, None, None), "uint8")
