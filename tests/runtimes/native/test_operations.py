"""The operations of native programs against the octavo:: operators, which are the oracle."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.graph.graph import Ref
from octavo.numerics.octavo_operators import dequantize, quantize
from octavo.runtimes.integers import Integers
from octavo.runtimes.native import operations
from octavo.runtimes.native.operations import Calculation, Combination, Pooled
from octavo.runtimes.native.program import Line, Program
from octavo.runtimes.native.windows import Windows

pytestmark = pytest.mark.usefixtures("instruction_set")

CHANNELS = st.sampled_from([1, 3, 16, 33, 64, 70])
SIZES = st.tuples(st.integers(0, 3), CHANNELS, st.integers(1, 9), st.integers(1, 9))


@st.composite
def meanings(draw: st.DrawFn) -> Integers:
    low, high = draw(st.sampled_from([(0, 255), (0, 127), (3, 200)]))
    scale, zero_point = draw(st.floats(0.01, 0.5)), draw(st.integers(low, high))
    return Integers(float(torch.tensor(scale)), zero_point, low, high, torch.uint8)


def integers(sizes: tuple[int, ...], last: bool = True) -> Tensor:
    q = torch.randint(0, 256, sizes, dtype=torch.uint8)
    return q.contiguous(memory_format=torch.channels_last) if last and len(sizes) == 4 else q


def floats(q: Tensor, meant: Integers) -> Tensor:
    return dequantize(q, meant.scale, meant.zero_point)


def stored(x: Tensor, out: Integers) -> Tensor:
    return quantize(x, out.scale, out.zero_point, out.low, out.high, out.dtype)


def is_near(result: Tensor, wanted: Tensor, equal: float = 0.99) -> bool:
    """Within a step, and mostly equal: the oracle's sums of floats may miss what is a half."""
    off = (result.int() - wanted.int()).abs()
    return result.shape == wanted.shape and (
        off.numel() == 0 or (int(off.max()) <= 1 and float((off == 0).double().mean()) >= equal)
    )


@given(SIZES, meanings(), st.booleans())
@settings(max_examples=40)
def test_rounding_is_the_oracles(sizes, out, last):
    x = torch.randn(sizes) * 20
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    result = Program.of(operations.Quantize(out), 1)(x)
    assert torch.equal(result, stored(x, out))
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_halves_infinities_and_nan_are_rounded_as_the_oracle_rounds_them():
    out = Integers(0.5, 3, 0, 255, torch.uint8)
    x = torch.tensor([0.25, 0.75, -0.25, -0.75, float("inf"), float("-inf"), 1e30, float("nan")])
    result = Program.of(operations.Quantize(out), 1)(x)
    assert result.tolist() == [3, 5, 3, 1, 255, 0, 255, 0]


@given(SIZES, meanings())
@settings(max_examples=20)
def test_integers_are_read_back_as_floats(sizes, meant):
    q = integers(sizes)
    result = Program.of(operations.Dequantize(meant), 1)(q)
    assert torch.equal(result, floats(q, meant))
    assert result.is_contiguous(memory_format=torch.channels_last)


@given(SIZES, meanings(), meanings(), meanings(), st.sampled_from(list(Combination)), st.data())
@settings(max_examples=80)
def test_sums_and_products_broadcast(sizes, one, two, out, combination, data):
    kept = data.draw(st.tuples(*[st.booleans()] * 4))
    a, b = integers(sizes), integers(tuple(n if k else 1 for n, k in zip(sizes, kept, strict=True)))
    if data.draw(st.booleans()):
        a, b = b, a
    result = Program.of(operations.Binary(combination, one, two, out), 2)(a, b)
    x, y = floats(a, one), floats(b, two)
    wanted = stored(x + y if combination is Combination.ADD else x * y, out)
    assert is_near(result, wanted, equal=0.9)


FUNCTIONS = {
    Calculation.SUM: torch.add,
    Calculation.DIFFERENCE: torch.sub,
    Calculation.PRODUCT: torch.mul,
    Calculation.QUOTIENT: torch.div,
}


@given(SIZES, st.sampled_from(list(Calculation)), st.data())
@settings(max_examples=40)
def test_floats_are_calculated_with(sizes, calculation, data):
    kept = data.draw(st.tuples(*[st.booleans()] * 4))
    a, b = torch.randn(sizes), torch.rand([n if k else 1 for n, k in zip(sizes, kept, strict=True)])
    if data.draw(st.booleans()):
        a = a.contiguous(memory_format=torch.channels_last)
    if data.draw(st.booleans()):
        a, b = b, a.abs() + 1
    result = Program.of(operations.Arithmetic(calculation), 2)(a, b)
    torch.testing.assert_close(result, FUNCTIONS[calculation](a, b), rtol=1e-6, atol=0)


def test_values_of_many_axes_are_one_row():
    out, x = Integers(0.02, 120, 0, 255, torch.uint8), torch.randn(2, 3, 2, 4, 2, 5)
    for read in (x, x.transpose(1, 3), x[:, :1].expand_as(x)):
        result = Program.of(operations.Quantize(out, rows=True), 1)(read)
        assert torch.equal(result, stored(read, out))
        total = Program.of(operations.Arithmetic(Calculation.SUM), 2)(read, read[..., :1])
        assert torch.equal(total, read + read[..., :1])


def test_an_empty_tensor_of_one_axis_is_left_out():
    """As the first keys and values of a cache are."""
    x, cat = torch.randn(2, 3), operations.Concatenate(-1)
    for tensors in ([torch.empty(0), x], [x, torch.empty(0), x], [torch.empty(0), torch.empty(0)]):
        assert torch.equal(Program.of(cat, len(tensors))(*tensors), torch.cat(tensors, -1))
    with pytest.raises(RuntimeError, match="do not fit"):
        Program.of(cat, 2)(x, torch.randn(3))


def test_rows_stay_where_they_are():
    out, x = Integers(0.02, 120, 0, 255, torch.uint8), torch.randn(5, 2, 8).transpose(0, 1)
    result = Program.of(operations.Quantize(out, rows=True), 1)(x)
    assert result.stride() == x.stride()
    assert torch.equal(result, stored(x, out))


def test_parts_are_looked_at():
    x = torch.randn(2, 3, 8)
    lines = (
        Line("parts", operations.Look(torch.split, (Ref("n"), -1), ("n",)), ("x", "n")),
        Line("one", operations.Item(1), ("parts",)),
        Line("q", operations.Quantize(Integers(0.02, 120, 0, 255, torch.uint8)), ("one",)),
    )
    whole = Program(lines, ("x", "n"), ("q", "one"))
    for size in (3, 4):
        q, one = whole(x, size)
        assert torch.equal(one, x.split(size, -1)[1])
        assert torch.equal(q, stored(one, lines[2].operation.out))


@given(SIZES)
@settings(max_examples=20)
def test_a_table_is_looked_up(sizes):
    table, q = torch.randint(0, 256, (256,), dtype=torch.uint8), integers(sizes)
    assert torch.equal(Program.of(operations.LookUp(table), 1)(q), table[q.long()])


@st.composite
def windows(draw: st.DrawFn) -> Windows:
    taps = draw(st.tuples(*[st.integers(1, 4)] * 2))
    padding = tuple(draw(st.integers(0, size // 2)) for size in taps)
    stride = draw(st.tuples(*[st.integers(1, 3)] * 2))
    return Windows(taps, stride, padding, ceil=draw(st.booleans()))


@given(SIZES, windows(), meanings())
@settings(max_examples=80)
def test_the_largest_of_windows(sizes, windows, meant):
    q = integers((*sizes[:2], sizes[2] + 3, sizes[3] + 3))
    pool = operations.Pool(Pooled.LARGEST, windows, 0, meant, meant)
    result = Program.of(pool, 1)(q)
    settings = (windows.taps, windows.stride, windows.padding, 1, windows.ceil)
    assert torch.equal(result, F.max_pool2d(q.float(), *settings).to(torch.uint8))


def test_the_largest_of_a_window_that_is_wholly_outside_is_the_least_integer():
    meant = Integers(0.1, 128, 20, 255, torch.uint8)
    windows = Windows((2, 2), padding=(1, 1), dilation=(4, 4))
    pool = operations.Pool(Pooled.LARGEST, windows, 0, meant, meant)
    q = torch.full((1, 3, 3, 3), 200, dtype=torch.uint8)
    assert Program.of(pool, 1)(q).flatten().tolist() == [20, 20, 20]


@given(SIZES, windows(), meanings(), meanings(), st.booleans(), st.sampled_from([0, 3]))
@settings(max_examples=80)
def test_means_of_windows(sizes, windows, meant, out, counts_padding, divisor):
    q = integers((*sizes[:2], sizes[2] + 3, sizes[3] + 3))
    pooled = Pooled.MEAN_WITH_PADDING if counts_padding else Pooled.MEAN
    result = Program.of(operations.Pool(pooled, windows, divisor, meant, out), 1)(q)
    settings = (windows.taps, windows.stride, windows.padding, windows.ceil, counts_padding)
    wanted = F.avg_pool2d(floats(q, meant), *settings, divisor or None)
    assert is_near(result, stored(wanted, out), equal=0.5)


@pytest.mark.parametrize(
    ("sizes", "dims"),
    [
        ((2, 70, 7, 7), (2, 3)),
        ((1, 300, 9, 5), (2, 3)),
        ((3, 5, 40), (1,)),
        ((3, 5, 40), (2,)),
        ((2, 3, 4, 20), (1, 2)),
        ((4, 6), (0,)),
        ((4, 6), (0, 1)),
    ],
)
@pytest.mark.parametrize("keepdim", [False, True])
def test_means_over_axes(sizes, dims, keepdim):
    meant, out = (
        Integers(0.0973, 100, 0, 255, torch.uint8),
        Integers(0.0217, 90, 0, 255, torch.uint8),
    )
    for last in (False, True):
        q = integers(sizes, last)
        result = Program.of(operations.Mean(dims, keepdim, meant, out), 1)(q)
        assert is_near(result, stored(floats(q, meant).mean(dims, keepdim), out))


def test_a_mean_of_more_bytes_than_sum_within_32_bits():
    meant = Integers(0.1, 3, 0, 255, torch.uint8)
    q = torch.full((1, 2**24 + 2**21, 1), 254, dtype=torch.uint8)
    q[:, ::2] = 250
    result = Program.of(operations.Mean((1,), False, meant, meant), 1)(q)
    assert result.tolist() == [[252]]


@given(SIZES, st.integers(0, 3), st.data())
@settings(max_examples=30)
def test_tensors_stand_beside_each_other(sizes, dim, data):
    shapes = [list(sizes) for _ in range(3)]
    for shape in shapes:
        shape[dim] = data.draw(st.integers(1, 40))
    tensors = [integers(tuple(shape), data.draw(st.booleans())) for shape in shapes]
    result = Program.of(operations.Concatenate(dim), 3)(*tensors)
    assert torch.equal(result, torch.cat(tensors, dim))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("flatten.using_ints", (1,)),
        ("reshape.default", ([2, -1],)),
        ("reshape.default", ([2, 3, 4, 5, 6],)),
        ("permute.default", ([0, 2, 3, 1],)),
        ("transpose.int", (1, 3)),
        ("slice.Tensor", (1, 3, 9)),
        ("select.int", (2, 1)),
        ("unsqueeze.default", (0,)),
        ("expand.default", ([2, 12, 5, 6],)),
    ],
)
def test_another_look_is_torchs(name, args):
    operator = torch.ops.aten
    for part in name.split("."):
        operator = getattr(operator, part)
    for q in (integers((2, 12, 5, 6)), integers((2, 12, 5, 6), last=False)):
        assert torch.equal(Program.of(operations.Look(operator, args), 1)(q), operator(q, *args))


def test_sizes_that_do_not_fit_are_refused():
    meant = Integers(0.1, 0, 0, 255, torch.uint8)
    pool = operations.Pool(Pooled.LARGEST, Windows((5, 5)), 0, meant, meant)
    with pytest.raises(RuntimeError, match="hold no window of 5"):
        Program.of(pool, 1)(integers((1, 3, 4, 4)))
    with pytest.raises(RuntimeError, match="do not fit"):
        Program.of(operations.Concatenate(1), 2)(integers((1, 3, 4, 4)), integers((1, 3, 4, 5)))
