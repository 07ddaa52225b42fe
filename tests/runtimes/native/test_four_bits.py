from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from octavo.numerics.native import library
from octavo.runtimes.native import four_bits


class Case:
    """Integers of four bits with scales and zero points of groups, and rows of floats."""

    def __init__(self, rows=20, groups=2, size=32, count=3, symmetric=False, seed=0):
        torch.manual_seed(seed)
        self.integers = torch.randint(0, 16, (rows, groups * size))
        self.scale = torch.rand(rows, groups) + 0.01
        self.zero_point = torch.randint(0, 16, (rows, groups))
        if symmetric:
            self.zero_point.fill_(8)
        self.x = torch.randn(count, groups * size)
        self.x[0] *= 1000.0
        self.given = {
            "weights": four_bits.pack(self.integers),
            "scales": four_bits.by_blocks(self.scale),
            "zero_points": four_bits.by_blocks(self.zero_point).to(torch.uint8),
            "rows": rows,
        }

    def run(self):
        return four_bits.multiply_four_bits(self.x, **self.given)

    def expected(self):
        rows, columns = self.integers.shape
        blocks = self.integers.reshape(rows, self.scale.shape[1], -1).double()
        weight = (blocks - self.zero_point[..., None]) * self.scale[..., None].double()
        return self.x.double() @ weight.reshape(rows, columns).T


def near(have, want, x):
    """Each value of a row is off by at most half a step of the largest; so are their sums."""
    step = x.abs().amax(1, keepdim=True).double() * four_bits.STEP
    error = (have.double() - want).abs() / step
    return float(error.max()) < 16 * x.shape[1] ** 0.5


@examples(40)
@given(
    rows=st.integers(1, 70),
    groups=st.integers(1, 5),
    size=st.sampled_from([32, 64, 96, 128, 256]),
    count=st.integers(1, 9),
    symmetric=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products_are_those_of_dequantized_weights(instruction_set, **sizes):
    case = Case(**sizes)
    assert near(case.run(), case.expected(), case.x)


@examples(40)
@given(
    rows=st.integers(1, 150),
    groups=st.integers(1, 5),
    size=st.sampled_from([32, 64, 96, 128, 256, 4096]),
    count=st.integers(1, 70),
    seed=st.integers(0, 99),
)
def test_amx_gives_what_vnni_gives(by_vnni_and_amx, **sizes):
    have, want = by_vnni_and_amx(Case(**sizes).run)
    assert have.equal(want)


def test_the_largest_sums_do_not_overflow(instruction_set):
    """All integers 15, all values as large as they get, of either sign, in one group."""
    case = Case(groups=1, size=32768, count=2)
    case.integers.fill_(15)
    case.given["weights"] = four_bits.pack(case.integers)
    case.x[0], case.x[1] = 3.0, -3.0
    assert near(case.run(), case.expected(), case.x)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_rows_of_the_weight(instruction_set, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        case = Case(rows=600, groups=8, size=128, count=5)
        assert near(case.run(), case.expected(), case.x)
    finally:
        torch.set_num_threads(before)


def test_a_row_that_is_not_finite_stays_so(instruction_set):
    case = Case(count=6)
    case.x[2, 5], case.x[4, 0] = float("nan"), float("inf")
    bad = case.run().isnan().all(1)
    assert bad.tolist() == [False, False, True, False, True, False]


def test_zeros_and_tiny_values(instruction_set):
    case = Case()
    case.x[1], case.x[2] = 0.0, 1e-42
    result = case.run()
    assert result[1].eq(0).all()
    assert result[2].abs().max() < 1e-35


@given(st.integers(1, 70), st.integers(1, 4), st.integers(0, 80), st.integers(0, 80))
def test_what_is_packed_comes_back(rows, chunks, start, stop):
    integers = torch.randint(0, 16, (rows, 32 * chunks), dtype=torch.uint8)
    packed = four_bits.pack(integers)
    which = slice(min(start, stop), max(start, stop))
    assert four_bits.unpack(packed, which, rows).equal(integers[which])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x", lambda x: x.double(), "rows of torch.float64"),
        ("x", lambda x: x[0], "rows of torch.float32"),
        ("x", lambda x: x[:, :32], "rows of 32 values for a weight of 20 x 64"),
        ("weights", lambda w: w[:1], "no part of packed weights"),
        ("weights", lambda w: w.transpose(3, 4), "no part of packed weights"),
        ("scales", lambda s: s[..., :8], "no part of packed weights"),
        ("zero_points", lambda z: z.int(), "no part of packed weights"),
        ("rows", lambda rows: rows + 16, "no part of packed weights"),
    ],
)
def test_what_does_not_fit_is_refused(name, change, message):
    case = Case()
    known = {"x": case.x, **case.given}
    with pytest.raises(ValueError, match=message):
        four_bits.multiply_four_bits(**known | {name: change(known[name])})


def test_torch_knows_what_it_makes():
    if library.library() is None:
        pytest.skip("the kernels are not compiled here")
    case = Case()
    operator = torch.ops.octavo.multiply_four_bits.default
    with torch.inference_mode():
        given = (case.x, *case.given.values())
        torch.library.opcheck(operator, given, test_utils=("test_schema", "test_faketensor"))
