"""Rolls and paddings as operations of programs: torch's results to the bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.runtimes.native.moves import Pad, Roll
from octavo.runtimes.native.operations import Look
from octavo.runtimes.native.program import Line, Program

pytestmark = pytest.mark.usefixtures("instruction_set")

SIZES = st.lists(st.integers(0, 5), min_size=1, max_size=5)


def values(sizes: list[int], is_float: bool, swaps: bool) -> torch.Tensor:
    x = torch.randn(sizes) if is_float else torch.randint(0, 256, sizes, dtype=torch.uint8)
    return x.transpose(0, -1) if swaps else x


@given(SIZES, st.booleans(), st.booleans(), st.data())
@settings(max_examples=60)
def test_rolls_are_torchs(sizes, is_float, swaps, data):
    x = values(sizes, is_float, swaps)
    axes = data.draw(st.lists(st.integers(0, x.dim() - 1), min_size=1, max_size=3, unique=True))
    shifts = [data.draw(st.integers(-7, 7)) for _ in axes]
    axes = [axis - x.dim() if data.draw(st.booleans()) else axis for axis in axes]
    have = Program.of(Roll(dict(zip(axes, shifts, strict=True))), 1)(x)
    assert torch.equal(have, x.roll(shifts, axes))


@given(SIZES, st.booleans(), st.booleans(), st.lists(st.integers(0, 3), min_size=2, max_size=4))
@settings(max_examples=60)
def test_paddings_are_torchs(sizes, is_float, swaps, amounts):
    x = values(sizes, is_float, swaps)
    amounts = amounts[: len(amounts) // 2 * 2][: 2 * x.dim()]
    number = torch.tensor(7, dtype=x.dtype)
    have = Program.of(Pad(amounts, number), 1)(x)
    assert torch.equal(have, F.pad(x, amounts, value=7))


def test_an_axis_may_have_two_names():
    x = torch.arange(12.0).view(3, 4)
    assert torch.equal(Program.of(Roll({0: 1, -2: 1}), 1)(x), x.roll((1, 1), (0, -2)))


def test_windows_of_a_rolled_image():
    x = torch.randn(2, 8, 8, 16)
    aten = torch.ops.aten
    lines = (
        Line("rolled", Roll({1: -2, 2: -2}), ("x",)),
        Line("cut", Look(aten.reshape.default, ([2, 2, 4, 2, 4, 16],)), ("rolled",)),
        Line("turned", Look(aten.permute.default, ([0, 1, 3, 2, 4, 5],)), ("cut",)),
        Line("windows", Look(aten.reshape.default, ([8, 16, 16],)), ("turned",)),
    )
    have = Program(lines, ("x",), ("windows",))(x)
    want = x.roll((-2, -2), (1, 2)).reshape(2, 2, 4, 2, 4, 16).permute(0, 1, 3, 2, 4, 5)
    assert torch.equal(have, want.reshape(8, 16, 16))


def test_what_does_not_fit_is_refused():
    with pytest.raises(RuntimeError, match=r"\(3,\) is rolled along the axes \[1\]"):
        Program.of(Roll({1: 2}), 1)(torch.ones(3))
    with pytest.raises(RuntimeError, match=r"\(3,\) is padded by \[1, 1, 1, 1\]"):
        Program.of(Pad([1, 1, 1, 1], torch.tensor(0.0)), 1)(torch.ones(3))
