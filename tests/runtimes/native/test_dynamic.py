"""Linear layers that round at each call, attention and functions of floats, in programs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.runtimes.native.convolution import Activation
from octavo.runtimes.native.dynamic import Activate, DynamicLinear, FloatAttention
from octavo.runtimes.native.eight_bits import multiply_eight_bits
from octavo.runtimes.native.matrix import How, Matrix, Reading
from octavo.runtimes.native.program import Line, Program

pytestmark = pytest.mark.usefixtures("instruction_set")


def weight_of(rows: int, columns: int) -> tuple[Tensor, Matrix]:
    integers = torch.randint(-127, 128, (rows, columns), dtype=torch.int8)
    return integers, Matrix.of(integers, torch.rand(rows) * 0.02, torch.randn(rows))


@given(
    st.lists(st.integers(1, 6), min_size=0, max_size=3),
    st.integers(1, 70),
    st.integers(1, 70),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60)
def test_it_is_the_product_of_rounded_rows(outer, columns, rows, symmetric, swaps):
    _, matrix = weight_of(rows, columns)
    x = torch.randn(*outer, columns)
    if swaps and len(outer) > 1:
        x = x.transpose(0, 1)
    how = (How.ROW_RANGE, *((-128, 127) if symmetric else (0, 255)), symmetric)
    have = Program.of(DynamicLinear(matrix, rows, columns, Reading(*how)), 1)(x)
    want = multiply_eight_bits(x.reshape(-1, columns), *matrix.tensors, rows, *how)
    assert torch.equal(have, want.reshape(*x.shape[:-1], rows))


def test_many_rows_are_cut_into_chunks():
    _, matrix = weight_of(130, 260)
    x = torch.randn(300, 260)
    reading = Reading(How.ROW_RANGE, 0, 255)
    have = Program.of(DynamicLinear(matrix, 130, 260, reading), 1)(x)
    want = multiply_eight_bits(x, *matrix.tensors, 130, How.ROW_RANGE, 0, 255)
    assert torch.equal(have, want)


def test_a_row_that_is_not_finite_is_nan_and_no_other():
    _, matrix = weight_of(20, 12)
    x = torch.randn(4, 12)
    x[1, 3], x[2, 0] = torch.nan, torch.inf
    have = Program.of(DynamicLinear(matrix, 20, 12, Reading(How.ROW_RANGE, 0, 255)), 1)(x)
    assert have.isnan().all(1).tolist() == [False, True, True, False]


def test_rows_of_another_length_are_refused():
    _, matrix = weight_of(20, 12)
    layer = DynamicLinear(matrix, 20, 12, Reading(How.ROW_RANGE, 0, 255))
    with pytest.raises(RuntimeError, match="rows of 8 values for a weight of 12 columns"):
        Program.of(layer, 1)(torch.randn(2, 8))


TORCHS = {
    Activation.RELU: F.relu,
    Activation.HARDSWISH: F.hardswish,
    Activation.SILU: F.silu,
    Activation.SIGMOID: torch.sigmoid,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Activation.TANH: torch.tanh,
}


@pytest.mark.parametrize("kind", TORCHS, ids=lambda kind: kind.name)
def test_functions_are_torchs_and_keep_nan(kind):
    x = torch.randn(3, 1100) * 4
    x[0, :5] = torch.tensor([torch.nan, 0.0, -0.0, -90.0, 90.0])
    for values in (x, x.t()):
        have = Program.of(Activate(kind), 1)(values)
        torch.testing.assert_close(have, TORCHS[kind](values), rtol=1e-5, atol=1e-5, equal_nan=True)


MASKS = {
    "none": lambda sizes: None,
    "seen": lambda sizes: torch.rand(sizes) < 0.7,
    "added": lambda sizes: torch.randn(sizes),
    "of one head": lambda sizes: torch.randn(sizes[0], 1, *sizes[2:]),
    "of all rows": lambda sizes: torch.rand(sizes[0], 1, 1, sizes[3]) < 0.7,
    "a column": lambda sizes: torch.randn(sizes[2], 1),
}


@given(
    st.integers(1, 3),
    st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    st.integers(1, 40),
    st.integers(1, 70),
    st.sampled_from([8, 16, 24, 32, 64, 72]),
    st.sampled_from(sorted(MASKS)),
)
@settings(max_examples=60)
def test_attention_is_torchs(batch, heads, targets, sources, channels, mask):
    count, shared = heads
    q, k, v = (
        torch.randn(batch, length, number, channels).transpose(1, 2)
        for length, number in ((targets, count), (sources, shared), (sources, shared))
    )
    given = MASKS[mask]((batch, count, targets, sources))
    operation = FloatAttention(False, None, count != shared)
    read = [q, k, v, *([] if given is None else [given])]
    have = Program.of(operation, len(read))(*read)
    want = F.scaled_dot_product_attention(q, k, v, given, enable_gqa=count != shared)
    # A row that sees nothing is 0 here; by torch too, or NaN.
    torch.testing.assert_close(have, want.nan_to_num(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("targets", [1, 7, 16, 33, 70])
def test_causal_attention_sees_what_was_before(targets):
    q, k, v = (torch.randn(2, 3, length, 16) for length in (targets, 70, 70))
    have = Program.of(FloatAttention(True, 0.3, False), 3)(q, k, v)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)


def test_attention_broadcasts_batches_and_has_no_heads_of_its_own():
    q, k, v = torch.randn(2, 1, 3, 5, 8), torch.randn(4, 3, 6, 8), torch.randn(1, 3, 6, 8)
    have = Program.of(FloatAttention(False, 0.3, False), 3)(q, k, v)
    want = F.scaled_dot_product_attention(*torch.broadcast_tensors(q), k, v, scale=0.3)
    torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)
    flat = [t.reshape(-1, *t.shape[-2:])[0] for t in (q, k, v)]
    have = Program.of(FloatAttention(False, 0.3, False), 3)(*flat)
    want = F.scaled_dot_product_attention(*flat, scale=0.3)
    torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)


def test_infinite_values_are_not_lost():
    q, k, v = (torch.randn(1, 2, 40, 16) for _ in range(3))
    q[0, 0, 3, 2] = torch.nan
    have = Program.of(FloatAttention(False, None, False), 3)(q, k, v)
    assert have.isnan().any(-1).nonzero().tolist() == [[0, 0, 3]]


@pytest.mark.parametrize(
    ("shapes", "causal"),
    [
        (((1, 2, 4, 12), (1, 2, 4, 12), (1, 2, 4, 12)), False),
        (((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 16)), False),
        (((1, 2, 9, 8), (1, 2, 4, 8), (1, 2, 4, 8)), True),
    ],
)
def test_what_the_kernel_has_no_form_for_is_refused(shapes, causal):
    with pytest.raises(RuntimeError, match="attention of"):
        Program.of(FloatAttention(causal, None, False), 3)(*map(torch.randn, shapes))


def test_a_layer_a_function_and_a_layer_are_one_program():
    (_, one), (_, two) = weight_of(40, 24), weight_of(10, 40)
    reading = Reading(How.ROW_RANGE, 0, 255)
    lines = (
        Line("wide", DynamicLinear(one, 40, 24, reading), ("x",)),
        Line("bent", Activate(Activation.GELU), ("wide",)),
        Line("y", DynamicLinear(two, 10, 40, reading), ("bent",)),
    )
    x, how = torch.randn(5, 7, 24), (How.ROW_RANGE, 0, 255)
    have = Program(lines, ("x",), ("y",))(x)
    middle = F.gelu(multiply_eight_bits(x.reshape(-1, 24), *one.tensors, 40, *how))
    want = multiply_eight_bits(middle, *two.tensors, 10, *how).reshape(5, 7, 10)
    torch.testing.assert_close(have, want, rtol=1e-2, atol=0.2 * float(want.std()))
