"""Pooling and resizing as ONNX: what torch gives."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

POOLS = {
    "max": (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    "average": (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    "adaptive average": (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    "adaptive max": (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
}
CASES = {
    "max": (
        [2],
        [3, 2, 1],
        {"kernel_size": 2, "dilation": 2},
        {"kernel_size": 3, "ceil_mode": True},
    ),
    "average": ([2], [3, 2, 1], *([3, 2, 1, *both] for both in product((False, True), repeat=2))),
    "adaptive average": ([1], [3], [4], [11]),
    "adaptive max": ([1], [3], [4]),
}


def pool(kind, case):
    return kind(**case) if isinstance(case, dict) else kind(*case)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", POOLS)
def test_pools(name, dims, agrees):
    pools = [pool(POOLS[name][dims - 1], case) for case in CASES[name]]
    agrees(lambda x: [pool(x) for pool in pools], torch.randn(2, 3, *(9, 6, 8)[:dims]))


POOLED = {
    "rows and columns": lambda x: F.max_pool2d(x, (3, 2), (2, 1), (1, 0)),
    "last windows that begin in the padding": lambda x: F.max_pool2d(x, 2, 2, 1, ceil_mode=True),
    "squeezenet's": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "values of windows": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "adaptive in one axis": lambda x: F.adaptive_avg_pool2d(x, (None, 4)),
    "adaptive to more than there is": lambda x: F.adaptive_avg_pool2d(x, (13, 1)),
    "adaptive along the batch": lambda x: F.adaptive_avg_pool2d(x.transpose(0, 2), 2),
    "adaptive integers of windows": lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
}


def test_pooled(agrees):
    x = torch.randn(2, 3, 9, 10)
    agrees(lambda x: {name: compute(x) for name, compute in POOLED.items()}, x)


def resized(mode, **options):
    return lambda x: F.interpolate(x, mode=mode, **options)


RESIZED = {  # by the number of dimensions
    1: {
        "to a computed size": lambda x: F.interpolate(x, size=x.shape[0] + 2),
        "nearest 1d": resized("nearest", scale_factor=3),
        "linear": resized("linear", size=9),
        "linear aligned": resized("linear", size=9, align_corners=True),
    },
    2: {
        "nearest": resized("nearest", scale_factor=2),
        "nearest to a size": resized("nearest", size=(7, 9)),
        "nearest smaller": resized("nearest", size=(3, 2)),
        "nearest by a fraction": resized("nearest", scale_factor=(1.5, 1.3)),
        "nearest exact": resized("nearest-exact", size=(7, 9)),
        "bilinear": resized("bilinear", scale_factor=2),
        "bilinear by a fraction": resized("bilinear", scale_factor=1.7),
        "bilinear to a size": resized("bilinear", size=(3, 11)),
        "bilinear to one": resized("bilinear", size=(1, 1)),
        "bilinear aligned": resized("bilinear", size=(8, 9), align_corners=True),
        "bilinear aligned by a factor": resized("bilinear", scale_factor=2, align_corners=True),
        "bicubic": resized("bicubic", size=(9, 11)),
        "bicubic smaller": resized("bicubic", scale_factor=0.6),
        "bicubic aligned": resized("bicubic", size=(9, 11), align_corners=True),
    },
    3: {
        "nearest 3d": resized("nearest", size=(4, 6, 3)),
        "trilinear": resized("trilinear", scale_factor=2),
    },
}


@pytest.mark.parametrize("dims", RESIZED)
def test_resized(dims, agrees):
    x = torch.randn(2, 3, *(5, 6, 4)[:dims])
    agrees(lambda x: {name: compute(x) for name, compute in RESIZED[dims].items()}, x)


REFUSED = {
    "a divisor": (lambda x: F.avg_pool2d(x, 2, divisor_override=3), "multiply after"),
    "places of the largest": (
        lambda x: F.max_pool2d(x, 2, return_indices=True)[1],
        "max_pool2d_with_indices",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_named(name, refusal):
    function, words = REFUSED[name]
    assert words in refusal(function, torch.randn(2, 3, 6, 8))
