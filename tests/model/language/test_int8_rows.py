"""Rows in int8: within half a step, each by itself."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.model.language.int8_rows import row_bytes, to_floats, to_rows


@given(
    st.integers(0, 2**31),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e30]),
    st.sampled_from([0.0, 1.0, -50.0]),
    st.integers(1, 9),
)
def test_a_row_is_within_half_a_step(seed: int, size: float, offset: float, channels: int) -> None:
    dice = torch.Generator().manual_seed(seed)
    x = (torch.randn(2, 3, channels, generator=dice) + offset) * size
    rows = to_rows(x)
    assert rows.dtype == torch.int8
    assert rows.shape == (2, 3, row_bytes(channels))
    error = (to_floats(rows).double() - x.double()).abs().amax(-1)
    step = (x.amax(-1) - x.amin(-1)).double() / 254
    floor = x.abs().amax(-1).double() * 2**-22  # of float32 itself
    assert (error <= step / 2 * (1 + 1e-5) + floor).all()


def test_golden_values() -> None:
    x = torch.tensor([[0.0, 100.4, 254.0], [-1.0, -1.0, -1.0]])
    assert to_rows(x)[:, :3].tolist() == [[-127, -27, 127], [0, 0, 0]]
    assert to_floats(to_rows(x)).tolist() == [[0.0, 100.0, 254.0], [-1.0, -1.0, -1.0]]


def test_what_is_no_number_spoils_its_own_row_alone() -> None:
    x = torch.tensor([[1.0, float("nan")], [float("inf"), 1.0], [0.0, 254.0]])
    found = to_floats(to_rows(x))
    assert found[:2].isnan().all()
    assert found[2].tolist() == [0.0, 254.0]


def test_rows_are_cut_and_picked_as_bytes() -> None:
    x = torch.randn(2, 4, 6, 5)
    rows = to_rows(x)
    picked = rows[1:, ::2, 1:4]
    assert torch.equal(to_floats(picked), to_floats(rows)[1:, ::2, 1:4])
    assert to_floats(picked, torch.bfloat16).dtype == torch.bfloat16
    assert to_floats(rows[:, :, :0]).shape == (2, 4, 0, 5)
