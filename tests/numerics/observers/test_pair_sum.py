"""`PairSum`: the two largest weights of one sign sum to the end of the range."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import CalibrationError
from octavo.numerics.affine import qparams_of_range, quantize
from octavo.numerics.observers import PairSum
from octavo.numerics.scheme import Scheme

SCHEME = Scheme("int8", symmetric=True, channel_axis=0, narrow_range=True)


def test_golden_values() -> None:
    weight = torch.tensor([[1.0, 2.0, -4.0], [3.0, -1.0, -1.5], [0.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    bounds = PairSum().bounds(PairSum().update(None, weight, 0), SCHEME)
    assert bounds.high.tolist() == [4.0, 3.0, 0.0, 1.0]
    assert bounds.low.tolist() == [-4.0, -3.0, 0.0, -1.0]
    whole = PairSum().bounds(PairSum().update(None, weight, None), SCHEME)
    assert (whole.low.item(), whole.high.item()) == (-5.5, 5.5)


def test_another_axis_and_a_single_value() -> None:
    weight = torch.tensor([[1.0, -5.0], [2.0, 3.0]])
    bounds = PairSum().bounds(PairSum().update(None, weight, 1), SCHEME)
    assert bounds.high.tolist() == [3.0, 5.0]
    single = PairSum().bounds(PairSum().update(None, torch.tensor([[-2.0]]), 0), SCHEME)
    assert single.high.tolist() == [2.0]


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=24))
def test_no_pair_of_products_overflows_int16(values: list[float]) -> None:
    weight = torch.tensor([values])
    bounds = PairSum().bounds(PairSum().update(None, weight, 0), SCHEME)
    p = qparams_of_range(bounds.low, bounds.high, SCHEME)
    q = quantize(weight, p.scale[:, None], p.zero_point[:, None], SCHEME.qmin, SCHEME.qmax)
    for side in (q, -q):
        assert 255 * side.clamp(min=0).topk(2).values.sum() <= torch.iinfo(torch.int16).max


@given(st.integers(1, 7), st.integers(0, 99))
def test_merged_halves_are_one_pass(cut: int, seed: int) -> None:
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
    observer = PairSum()
    whole = observer.bounds(observer.update(None, weight, 0), SCHEME)
    parts = [observer.update(None, part, 0) for part in (weight[:, :cut], weight[:, cut:])]
    assert torch.equal(observer.bounds(observer.merge(*parts), SCHEME).high, whole.high)


def test_an_empty_tensor_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="no values to observe"):
        PairSum().update(None, torch.zeros(0, 3), 0)
