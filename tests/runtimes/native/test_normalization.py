from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from octavo.numerics import octavo_operators
from octavo.numerics.native import library
from octavo.runtimes.native.normalization import KINDS, normalize

EPS, SOURCE, OUT = 1e-5, [0.05, 131], [0.0213, 101, 3, 250]


def expected(x, kind, weight, bias):
    size = x.shape[-1:]
    if kind == "softmax":
        return F.softmax(x, -1)
    if kind == "rms_norm":
        return F.rms_norm(x, size, weight, EPS)
    return F.layer_norm(x, size, weight, bias, EPS)


class Case:
    """Rows of floats or integers, and what a norm multiplies and adds."""

    def __init__(self, rows=5, columns=70, integers=False, addend=False, parameters=True):
        self.x = torch.randn(rows, columns) * 2 + 0.5
        self.source = []
        if integers:
            self.x = torch.randint(0, 256, (rows, columns), dtype=torch.uint8)
            self.source = SOURCE
        self.addend = torch.randn(rows, columns) if addend and not integers else None
        self.weight, self.bias = (
            (torch.randn(columns), torch.randn(columns)) if parameters else (None, None)
        )

    def given(self, kind, floats=True, out=()):
        parameters = (None, None) if kind == "softmax" else (self.weight, self.bias)
        if kind == "rms_norm":
            parameters = (self.weight, None)
        settings = (kind, self.x.shape[-1], EPS, self.source, floats, list(out))
        return (self.x, self.addend, *parameters, *settings)

    def agrees(self, kind):
        floats, integers = normalize(*self.given(kind, out=OUT))
        x = octavo_operators.dequantize(self.x, *SOURCE) if self.source else self.x
        x = x if self.addend is None else x + self.addend
        want = expected(x, kind, self.weight, self.bias)
        assert torch.allclose(want, floats, rtol=1e-4, atol=1e-5)
        stored = octavo_operators.quantize(want, *OUT, torch.uint8)
        assert int((stored.int() - integers.int()).abs().max()) <= 1
        assert float((stored != integers).double().sum()) <= 1 + 0.001 * stored.numel()


@examples(40)
@given(
    kind=st.sampled_from(list(KINDS)),
    rows=st.integers(1, 40),
    columns=st.integers(2, 300),
    integers=st.booleans(),
    addend=st.booleans(),
    parameters=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rows_are_those_of_torch(instruction_set, kind, seed, **sizes):
    torch.manual_seed(seed)
    Case(**sizes).agrees(kind)


def test_golden_rows(instruction_set):
    x = torch.tensor([[1.0, 3.0], [4.0, 4.0]])
    norm = normalize(x, None, None, None, "layer_norm", 2, 0.0, [], True, [0.5, 10, 0, 255])
    assert norm[0][0].tolist() == [-1.0, 1.0]
    assert norm[1][0].tolist() == [8, 12]
    softmax = normalize(x, None, None, None, "softmax", 2, 0.0, [], False, [1 / 256, 0, 0, 255])
    assert softmax[0].numel() == 0
    assert softmax[1].tolist() == [[31, 225], [128, 128]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_stays_so(instruction_set, kind, value):
    case = Case(parameters=False)
    case.x[2, 5] = value
    have = normalize(*case.given(kind))[0]
    want = expected(case.x, kind, None, None)
    assert want.isfinite().equal(have.isfinite())


def test_softmax_leaves_out_what_is_hidden(instruction_set):
    x = torch.tensor([[1.0, float("-inf"), 1.0], [float("-inf")] * 3])
    have = normalize(x, None, None, None, "softmax", 3, 0.0, [], True, [])[0]
    assert torch.allclose(have[0], torch.tensor([0.5, 0.0, 0.5]))
    assert have[1].isnan().all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_rows(instruction_set, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        Case(rows=130, columns=400, addend=True).agrees("layer_norm")
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c, "x", c.x.double()), "rows of 70 in torch.float64"),
        (lambda c: setattr(c, "source", SOURCE), "where torch.uint8 is expected"),
        (lambda c: setattr(c, "weight", c.weight[:3]), "has not 70 values"),
        (lambda c: setattr(c, "bias", c.bias.double()), "where float32 is expected"),
        (lambda c: setattr(c, "addend", c.x[:1]), r"\[1, 70\] is added to"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    case = Case()
    change(case)
    with pytest.raises(ValueError, match=message):
        normalize(*case.given("layer_norm"))


def test_torch_knows_what_it_makes():
    if library.library() is None:
        pytest.skip("the kernels are not compiled here: make native")
    operator = torch.ops.octavo.normalize.default
    with torch.inference_mode():
        torch.library.opcheck(
            operator,
            Case().given("layer_norm", out=OUT),
            test_utils=("test_schema", "test_faketensor"),
        )
