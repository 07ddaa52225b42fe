from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from octavo.numerics import octavo_operators
from octavo.numerics.native import library
from octavo.runtimes.native import eight_bits
from octavo.runtimes.native.matrix import How, Matrix


class Case:
    """Integers with a scale for each row, a bias or none, and rows of floats."""

    def __init__(self, rows=20, columns=30, count=3, bias=True, seed=0):
        torch.manual_seed(seed)
        self.integers = torch.randint(-128, 128, (rows, columns), dtype=torch.int8)
        self.scale = torch.rand(rows) + 0.01
        self.bias = torch.randn(rows) if bias else None
        self.x = torch.randn(count, columns)
        self.x[0] *= 1000.0

    def given(self):
        matrix = Matrix.of(self.integers, self.scale, self.bias)
        names = ("weights", "scales", "sums", "bias")
        return dict(zip(names, matrix.tensors, strict=True)) | {"rows": len(self.integers)}

    def agrees(self):
        """A value is off by at most half a step of its row's largest."""
        have = eight_bits.multiply_eight_bits(self.x, **self.given()).double()
        weight = self.integers.double() * self.scale[:, None].double()
        bias = 0 if self.bias is None else self.bias.double()
        step = self.x.abs().amax(1, keepdim=True).double() * eight_bits.STEP
        error = (have - (self.x.double() @ weight.T + bias)).abs() / step
        assert float(error.max()) < 128 * self.x.shape[1] ** 0.5


MATRICES = {
    "rows": st.integers(1, 150),
    "columns": st.integers(1, 300),
    "bias": st.booleans(),
    "seed": st.integers(0, 99),
}


@examples(40)
@given(count=st.integers(1, 9), **MATRICES)
def test_products_are_those_of_dequantized_weights(instruction_set, **sizes):
    Case(**sizes).agrees()


@examples(40)
@given(
    count=st.integers(1, 30),
    per_token=st.booleans(),
    integers=st.sampled_from(
        [(0, 255, False), (-128, 127, False), (-127, 127, True), (0, 63, False)]
    ),
    **MATRICES,
)
def test_rows_are_rounded_as_the_oracle_rounds_them(instruction_set, per_token, integers, **sizes):
    case, how = Case(**sizes), How.ROW_RANGE if per_token else How.TENSOR_RANGE
    have = eight_bits.multiply_eight_bits(case.x, **case.given(), **reading(how, *integers))
    rounded = octavo_operators.fake_quantize_dynamic(case.x, *integers, per_token)
    weight = case.integers.double() * case.scale[:, None].double()
    want = rounded.double() @ weight.T + (0 if case.bias is None else case.bias.double())
    size = rounded.double().abs() @ weight.abs().T + 1
    assert float(((have.double() - want).abs() / size).max()) < 1e-5


@examples(40)
@given(
    count=st.integers(1, 70),
    how=st.sampled_from([How.FLOATS, How.ROW_RANGE, How.TENSOR_RANGE]),
    integers=st.sampled_from([(0, 255, False), (-127, 127, True)]),
    **MATRICES,
)
def test_amx_gives_what_vnni_gives(by_vnni_and_amx, how, integers, **sizes):
    case = Case(**sizes)
    given = case.given() | reading(how, *integers)
    have, want = by_vnni_and_amx(lambda: eight_bits.multiply_eight_bits(case.x, **given))
    assert have.equal(want)


@pytest.mark.parametrize("how", [How.ROW_RANGE, How.TENSOR_RANGE])
def test_rows_of_any_finite_range_have_results(instruction_set, how):
    """Between the largest floats of both signs lies more than a float holds."""
    case, most = Case(count=2), 3.3e38
    case.scale *= 1e-3
    case.x.zero_()
    case.x[0, 0], case.x[0, 1] = most, -most
    have = eight_bits.multiply_eight_bits(case.x, **case.given(), **reading(how, 0, 255, False))
    rounded = octavo_operators.fake_quantize_dynamic(case.x, 0, 255, False, how is How.ROW_RANGE)
    assert float((rounded - case.x).abs().max()) < most / 127
    want = rounded.double() @ (case.integers.double() * case.scale[:, None].double()).T
    assert float((have[0].double() - want[0]).abs().max()) < 1e-5 * most
    assert torch.equal(have[1], case.bias)


def reading(how, low, high, symmetric):
    return {"how": how, "low": low, "high": high, "symmetric": symmetric}


def test_no_rows_are_none(instruction_set):
    given = Case().given()
    for how in (How.FLOATS, How.ROW_RANGE, How.TENSOR_RANGE):
        none = eight_bits.multiply_eight_bits(
            torch.empty(0, 30), **given, **reading(how, 0, 255, False)
        )
        assert none.shape == (0, 20)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_largest_sums_do_not_overflow(instruction_set, sign):
    case = Case(columns=32768, count=2)
    case.integers.fill_(-128)
    case.x.fill_(3.0 * sign)
    case.agrees()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_rows_of_the_weight(instruction_set, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        Case(rows=600, columns=1000, count=5).agrees()
    finally:
        torch.set_num_threads(before)


def test_a_row_that_is_not_finite_stays_so(instruction_set):
    case = Case(count=6)
    case.x[2, 5], case.x[4, 0] = float("nan"), float("inf")
    bad = eight_bits.multiply_eight_bits(case.x, **case.given()).isnan().all(1)
    assert bad.tolist() == [False, False, True, False, True, False]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x", lambda x: x.double(), "rows of torch.float64"),
        ("x", lambda x: x[0], "rows of torch.float32"),
        ("x", lambda x: x[:, :28], "rows of 28 values for a weight of 20 x 32"),
        ("weights", lambda w: w[:1], "no part of packed weights"),
        ("bias", lambda b: b[:16], "no part of packed weights"),
        ("rows", lambda rows: rows + 16, "for a weight of 36 x 32"),
        ("rows", lambda rows: rows - 16, "for a weight of 4 x 32"),
        ("how", lambda how: How.INTEGERS, "read as integers"),
    ],
)
def test_what_does_not_fit_is_refused(name, change, message):
    case = Case()
    known = {"x": case.x, "how": How.FLOATS, **case.given()}
    with pytest.raises(ValueError, match=message):
        eight_bits.multiply_eight_bits(**known | {name: change(known[name])})


def test_torch_knows_what_it_makes():
    if library.library() is None:
        pytest.skip("the kernels are not compiled here")
    case = Case()
    operator = torch.ops.octavo.multiply_eight_bits.default
    with torch.inference_mode():
        given = (case.x, *case.given().values())
        torch.library.opcheck(operator, given, test_utils=("test_schema", "test_faketensor"))
