"""Convolutions in bfloat16 whose result is one column wide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import octavo
from octavo.graph import operators
from octavo.graph.one_column import Widening

# Sizes of an image, taps, strides, padding, dilations: of the last axis one result each.
_ONE_COLUMN = (
    ((9, 2), (3, 3), (1, 2), (1, 1), (1, 1)),
    ((9, 2), (3, 3), (1, 2), (1, 1), (2, 1)),
    ((13, 3), (1, 2), (2, 3), (0, 1), (2, 2)),
    ((5, 4), (5, 3), (2, 2), (2, 0), (1, 1)),
    ((2, 9, 3), (2, 2, 2), (2, 3, 2), (1, 0, 0), (1, 1, 2)),
    ((4, 6, 4), (3, 2, 3), (2, 3, 2), (1, 1, 0), (1, 1, 1)),
)


def _operands(image: tuple[int, ...], taps: tuple[int, ...], groups: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4, *image), (8, 4 // groups, *taps), (8,))
    return [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("image", "taps", "strides", "padding", "dilation"), _ONE_COLUMN)
def test_one_column_is_what_floats_make(
    image: Any, taps: Any, strides: Any, padding: Any, dilation: Any, groups: int
) -> None:
    operands = _operands(image, taps, groups)
    geometry = (list(strides), list(padding), list(dilation), groups)
    convolution = operators.resolve(f"aten.conv{len(image)}d.default")
    result = convolution(*operands, *geometry)
    wanted = convolution(*(operand.float() for operand in operands), *geometry)
    assert result.shape[-1] == 1
    torch.testing.assert_close(result.float(), wanted, rtol=0.02, atol=0.05)


@pytest.mark.parametrize(("image", "taps", "strides", "padding", "dilation"), _ONE_COLUMN)
def test_the_kernel_is_not_asked_for_one_column(
    image: Any, taps: Any, strides: Any, padding: Any, dilation: Any
) -> None:
    widths = []

    def kernel(*args: Any) -> Tensor:
        result: Tensor = getattr(torch.ops.aten, f"conv{len(image)}d").default(*args)
        widths.append(result.shape[-1])
        return result

    operands = _operands(image, taps, 1)
    result = Widening(kernel)(*operands, list(strides), list(padding), list(dilation))
    assert (widths, result.shape[-1]) == ([2], 1)
    wide = (operand.float() for operand in operands)
    Widening(kernel)(*wide, list(strides), list(padding), list(dilation))
    assert widths[1] == 1  # in float32 the kernel is right


def test_valid_padding_by_its_name_too() -> None:
    x, weight, bias = _operands((5, 4), (3, 3), 1)
    convolution = operators.resolve("aten.conv2d.padding")
    result = convolution(x, weight, bias, [2, 2], "valid")
    wanted = convolution(x.float(), weight.float(), bias.float(), [2, 2], "valid")
    assert result.shape[-1] == 1
    torch.testing.assert_close(result.float(), wanted, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("options", [{"precision": "bfloat16"}, {}], ids=["precision", "rule"])
def test_a_layer_of_one_column_in_bfloat16_is_right_in_the_torch_runtime(
    options: dict[str, str],
) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3, (1, 2), 1)
    ).eval()
    x = torch.randn(2, 4, 9, 2)
    rule = None if options else torch.bfloat16
    rules = octavo.QConfigMapping().set_module_name("2", rule)
    q = octavo.quantize(net, calibration=[x], qconfig=rules, progress=False)
    made = q.lower("torch", **options)(x)
    kept_float = octavo.QConfigMapping().set_module_name("2", None)
    wide = octavo.quantize(net, calibration=[x], qconfig=kept_float, progress=False)
    torch.testing.assert_close(made, wide.lower("reference")(x), rtol=0.02, atol=0.02)
