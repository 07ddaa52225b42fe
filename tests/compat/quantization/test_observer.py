"""The observers give the numbers that torch.ao's gave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.ao.quantization.observer as theirs
from torch import Tensor, nn

import octavo
from octavo.compat.quantization import observer as ours
from octavo.errors import OctavoWarning

TENSOR = ("MinMaxObserver", "MovingAverageMinMaxObserver")
CHANNEL = ("PerChannelMinMaxObserver", "MovingAveragePerChannelMinMaxObserver")
ARGUMENTS: tuple[dict[str, Any], ...] = (
    {},
    {"reduce_range": True},
    {"dtype": torch.qint8},
    {"dtype": torch.qint8, "reduce_range": True},
    {"quant_min": 0, "quant_max": 127},
    {"dtype": torch.qint8, "quant_min": -127, "quant_max": 127},
    {"dtype": torch.qint8, "quant_min": -8, "quant_max": 7},
)


def batches(shift: float = 0.3) -> list[Tensor]:
    return [torch.randn(3, 5, 4) * scale + shift for scale in (1.0, 2.5, 0.5)]


def check(name: str, data: list[Tensor], **arguments: Any) -> None:
    mine, other = getattr(ours, name)(**arguments), getattr(theirs, name)(**arguments)
    for x in data:
        assert mine(x) is x
        other(x)
    for got, wanted in zip(mine.calculate_qparams(), other.calculate_qparams(), strict=True):
        torch.testing.assert_close(got, wanted)  # shape and dtype are compared as well
    torch.testing.assert_close(mine.min_val, other.min_val)
    torch.testing.assert_close(mine.max_val, other.max_val)
    assert (mine.quant_min, mine.quant_max) == (other.quant_min, other.quant_max)
    assert repr(mine) == repr(other)


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize("name", TENSOR)
def test_affine_per_tensor(name: str, arguments: dict[str, Any]) -> None:
    check(name, batches(), **arguments)
    check(name, batches(shift=9.0), **arguments)  # zero is always in the range


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize("name", CHANNEL)
def test_affine_per_channel(name: str, arguments: dict[str, Any]) -> None:
    check(name, batches(), **arguments)
    check(name, batches(), ch_axis=1, **arguments)


@pytest.mark.parametrize("dtype", [torch.quint8, torch.qint8], ids=str)
def test_symmetric(dtype: torch.dtype) -> None:
    for name in TENSOR:
        check(name, batches(), dtype=dtype, qscheme=torch.per_tensor_symmetric)
    for name in CHANNEL:
        check(name, batches(), dtype=dtype, qscheme=torch.per_channel_symmetric)


def test_a_tensor_of_one_value_and_a_tiny_range() -> None:
    check("MinMaxObserver", [torch.zeros(4)])
    check("MinMaxObserver", [torch.tensor([-1e-6, 1e-6])])
    check("MinMaxObserver", [torch.tensor([3.0])])
    check("MovingAverageMinMaxObserver", batches(), averaging_constant=0.4)


def test_histogram_is_at_least_as_good() -> None:
    x = torch.cat([torch.randn(20_000), torch.tensor([25.0])])
    errors = []
    for module in (ours, theirs):
        observer = module.HistogramObserver()
        observer(x)
        scale, zero_point = (v.item() for v in observer.calculate_qparams())
        rounded = torch.fake_quantize_per_tensor_affine(x, scale, int(zero_point), 0, 255)
        errors.append((x - rounded).square().sum().item())
    assert errors[0] <= errors[1] * 1.05
    plain = [torch.rand(4, 8) - 0.5 for _ in range(3)]
    scales = []
    for module in (ours, theirs):
        observer = module.HistogramObserver()
        for batch in plain:
            observer(batch)
        scales.append(observer.calculate_qparams()[0].item())
    assert scales[0] == pytest.approx(scales[1], rel=0.05)


def test_fixed_qparams_and_placeholders() -> None:
    fixed = ours.default_fixed_qparams_range_0to1_observer()
    assert [v.item() for v in fixed.calculate_qparams()] == [1 / 256, 0]
    assert fixed.native == octavo.FixedRange(0.0, 255 / 256)
    with pytest.raises(octavo.OctavoError, match="keeps no range: take MinMaxObserver"):
        ours.PlaceholderObserver().calculate_qparams()
    older = ours.PlaceholderObserver(compute_dtype=torch.quint8)
    assert older.is_dynamic
    assert older.dtype is torch.quint8


def test_before_the_first_batch_the_scale_is_one_and_says_so() -> None:
    observer = ours.MinMaxObserver()
    with pytest.warns(OctavoWarning, match="has seen nothing"):
        assert [v.tolist() for v in observer.calculate_qparams()] == [[1.0], [0]]
    observer(torch.ones(2))
    observer.reset_min_max_vals()
    assert observer.max_val == -torch.inf


def test_with_args_prints_and_compares_as_before() -> None:
    partial = ours.MinMaxObserver.with_args(qscheme=torch.per_tensor_affine)
    name = "octavo.compat.quantization.observer.MinMaxObserver"
    expected = f"functools.partial(<class '{name}'>, qscheme=torch.per_tensor_affine){{}}"
    assert repr(partial) == expected
    more = partial.with_args(reduce_range=True)
    assert more().quant_max == 127
    assert partial == ours.MinMaxObserver.with_args(qscheme=torch.per_tensor_affine) != more
    assert len({partial, more}) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ours.MinMaxObserver(dtype=torch.float16), "take torch.quint8 or torch.qint8"),
        (lambda: ours.MinMaxObserver(qscheme=torch.qint8), "qscheme is torch.qint8; one of"),
        (lambda: ours.MinMaxObserver(qscheme=torch.per_channel_affine), "is per tensor"),
        (lambda: ours.PerChannelMinMaxObserver(qscheme=torch.per_tensor_affine), "is per channel"),
        (
            lambda: ours.MinMaxObserver(quant_min=3, quant_max=99),
            "not a range of Octavo's integers",
        ),
        (
            lambda: ours.MinMaxObserver(
                qscheme=torch.per_tensor_symmetric, quant_min=0, quant_max=127
            ),
            "has no exact middle: take dtype=torch.qint8",
        ),
    ],
)
def test_what_has_no_scheme_is_refused(make: Any, message: str) -> None:
    with pytest.raises(octavo.OctavoError, match=message):
        make()


def test_every_default_has_the_ranges_of_torch() -> None:
    names = [n for n in dir(theirs) if n.startswith(("default_", "weight_obs", "per_channel_w"))]
    shared = [n for n in names if hasattr(ours, n)]
    assert len(shared) >= 14
    for name in shared:
        mine, other = getattr(ours, name)(), getattr(theirs, name)()
        assert isinstance(mine, nn.Module)
        assert mine.dtype == other.dtype
        if hasattr(mine, "quant_min"):
            assert (mine.quant_min, mine.quant_max) == (other.quant_min, other.quant_max)
            assert mine.qscheme == other.qscheme
