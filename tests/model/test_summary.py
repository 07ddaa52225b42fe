"""Sizes in the summary: of what is stored, and of the same weights in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.measuring.footprint import float_bytes

HOST = octavo.host_target()


class Net(nn.Module):
    """With tied weights, an island in float, and integers that are data."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner = nn.Embedding(50, 32), nn.Linear(32, 32)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 50, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("order", torch.arange(32).flip(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.inner(self.words(x))).relu()[..., self.order])


PARAMETERS = 50 * 32 + 32 * 32 + 32 + 32 + 32
FLOAT_MB = (4 * PARAMETERS + 8 * 32) / 1e6


def symmetric(dtype: str, **granularity: Any) -> octavo.QConfig:
    scheme = octavo.Scheme(dtype, symmetric=True, **granularity)
    return octavo.QConfig(None, octavo.QSpec(scheme, octavo.MinMax()))


FORMS: dict[str, dict[str, Any]] = {
    "int8": {"mode": "weight_only"},
    "dynamic": {"mode": "dynamic"},
    "int4 in groups": {"qconfig": octavo.weight_only_qconfig(4, group_size=8)},
    "int8 in groups": {"qconfig": symmetric("int8", group_size=8)},
    "int4 per tensor": {"qconfig": symmetric("int4")},
    "int3": {"qconfig": symmetric("int3", channel_axis=0)},
    "bfloat16": {"qconfig": octavo.QConfigMapping().set_module_name("inner", torch.bfloat16)},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_size_in_float32_is_that_of_the_float_model(form: str) -> None:
    model = Net().eval()
    q = octavo.quantize(model, torch.randint(0, 50, (2, 5)), progress=False, **FORMS[form])
    summary = q.summary()
    assert summary.float_mb == pytest.approx(FLOAT_MB)
    assert float_bytes(model) == round(1e6 * FLOAT_MB)
    stored = sum(t.numel() * t.element_size() for t in q.graph.constants.values())
    assert summary.size_mb == pytest.approx(stored / 1e6)


def test_sizes_are_counted_in_bytes_and_not_in_elements() -> None:
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128)).eval()
    q = octavo.quantize(
        model, torch.rand(2, 128), qconfig=octavo.weight_only_qconfig(4, group_size=64)
    )
    groups = 2 * 128 * 2
    assert q.summary().size_mb == pytest.approx((2 * 128 * 64 + 8 * groups + 2 * 4 * 128) / 1e6)
    assert q.summary().float_mb == pytest.approx(2 * 4 * (128 * 128 + 128) / 1e6)
    assert str(q.summary()).splitlines()[1] == (
        "tensors: 0.02 MB, 0.02 MB of them integers; 0.13 MB in float32"
    )


def test_a_static_model_counts_alike() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    q = octavo.quantize(model, calibration=[torch.rand(2, 3, 8, 8)], target=HOST, progress=False)
    assert q.summary().float_mb == pytest.approx(4 * (8 * 27 + 8 + 4 * 72 + 4) / 1e6)
