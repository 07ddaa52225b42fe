"""Batches image by image: what comes out is what all steps make of the whole batch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.numerics.native import library
from octavo.runtimes.integers import Integers
from octavo.runtimes.native import operations
from octavo.runtimes.native import program as programs
from octavo.runtimes.native.convolution import Convolution, Epilogue, Geometry
from octavo.runtimes.native.operations import Calculation, Combination, Look, Pooled
from octavo.runtimes.native.planning import Operation
from octavo.runtimes.native.program import Line, Program
from octavo.runtimes.native.rows import AddUp, Attend, Normalize
from octavo.runtimes.native.windows import Windows

pytestmark = pytest.mark.skipif(library.library() is None, reason="make native")

X = Integers(0.05, 120, 0, 255, torch.uint8)
aten = torch.ops.aten


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def layer(channels: int = 8, kernel: int = 3) -> operations.Layer:
    weight = torch.randint(-127, 128, (channels, kernel, kernel, channels), dtype=torch.int8)
    scales, bias = torch.full((channels,), 0.001), torch.randn(channels)
    epilogue = Epilogue(scales, bias, out_scale=X.scale, out_zero_point=X.zero_point)
    geometry = Geometry(channels, channels, (kernel, kernel), padding=(kernel // 2,) * 4)
    return operations.Layer(Convolution.of(geometry, weight, X.zero_point, epilogue))


def chain(*steps: Operation, reads: tuple[str, ...] = ()) -> Program:
    """Rounding, and then each step of the one before; the last reads others too."""
    lines = [Line("0", operations.Quantize(X), ("x",))]
    for at, step in enumerate(steps):
        others = reads if at + 1 == len(steps) else ()
        lines.append(Line(str(at + 1), step, (str(at), *others)))
    return Program(tuple(lines), ("x",), (lines[-1].out,))


def sliced_steps(program: Program) -> tuple[int, int]:
    """How many steps the last plan takes image by image, and how many not."""
    plan = list(program._plans.values())[-1]
    return 0 if plan.slices is None else len(plan.slices.steps), len(plan.steps)


def at_once(program: Program, *given: Tensor | int) -> Tensor | tuple[Tensor, ...]:
    """What all steps make of the whole batch."""
    plain = Program(program.lines, program.inputs, program.results)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "sliced", lambda *_: None)
        return plain(*given)


STEPS: list[Operation] = [
    layer(),
    operations.LookUp(torch.randperm(256).to(torch.uint8)),
    operations.Pool(Pooled.MEAN, Windows((3, 3), padding=(1, 1)), 0, X, X),
    operations.Pool(Pooled.LARGEST, Windows((3, 3), padding=(1, 1)), 0, X, X),
    Look(aten.permute.default, ([0, 1, 3, 2],)),
    Look(lambda x: x.reshape(x.shape[0], -1).reshape(x.shape)),
]
# These mix images.
MIXING: list[Operation] = [
    Look(lambda x: x.reshape(-1).reshape(x.shape[::-1]).permute(3, 2, 1, 0)),
    Look(lambda x: x[:1].expand(x.shape)),
    Look(lambda x: x[-1].expand(x.shape)),
]


@given(
    st.sampled_from([4, 6, 21]),
    st.lists(st.sampled_from(STEPS), max_size=4),
    st.lists(st.sampled_from([*STEPS, *MIXING]), max_size=4),
    st.integers(0, 8),
)
@settings(max_examples=60)
def test_nothing_depends_on_how_a_batch_is_taken(batch, first, others, skipped):
    """Whatever stands in a program, and whichever value a last step adds."""
    steps = [*first, *others, operations.Binary(Combination.ADD, X, X, X)]
    program = chain(*steps, reads=(str(min(skipped, len(steps) - 1)),))
    x = torch.randn(batch, 8, 14, 14)
    assert torch.equal(program(x), at_once(program, x))
    if batch < 21:  # the last of 21 would let a thread wait
        assert sliced_steps(program)[0] >= 1 + sum(step.__class__ is not Look for step in first)


@pytest.mark.parametrize("mixing", MIXING)
def test_what_mixes_images_is_done_at_once(mixing):
    program = chain(layer(), mixing, layer())
    program(torch.randn(4, 8, 14, 14))
    images, whole = sliced_steps(program)
    assert images >= 2
    assert whole > 0


@pytest.mark.parametrize("look", [
    lambda x: x.narrow(1, len(x), 4),  # elsewhere
    lambda x: x.unflatten(1, (4, 4)).transpose(1, 2 if len(x) > 1 else 1),  # in another order
])  # fmt: skip
def test_a_look_that_depends_on_the_batch(look):
    add = operations.Arithmetic(Calculation.SUM)
    lines = (Line("a", add, ("x", "x")), Line("b", Look(look), ("a",)), Line("c", add, ("z", "b")))
    program, x = Program(lines, ("x", "z"), ("c",)), torch.randn(4, 16, 3)
    z = torch.randn(look(x).shape)
    assert torch.equal(program(x, z), z + 2 * look(x))
    assert sliced_steps(program) == (1, 1)


def test_layers_with_large_weights_are_left_to_all_threads():
    program = chain(layer(64), layer(64), layer(64), layer(64))
    program(torch.randn(4, 64, 32, 32))
    assert sliced_steps(program) == (5, 0)
    x = torch.randn(4, 64, 3, 3)
    assert torch.equal(program(x), at_once(program, x))
    assert sliced_steps(program) == (1, 4)


def test_few_images_are_cut_within():
    program = chain(layer(), layer())
    for batch in (1, 2, 3, 5):
        program(torch.randn(batch, 8, 20, 20))
        assert sliced_steps(program) == (0, 3)


def test_values_for_later_steps_and_results():
    """Some are made of images and read by the rest, some are results or parts of another."""
    both = operations.Concatenate(1)
    lines = (
        Line("a", operations.Quantize(X), ("x",)),
        Line("b", layer(), ("a",)),
        Line("c", layer(), ("b",)),
        Line("d", both, ("c", "a")),
        Line("e", Look(lambda x: x.narrow(1, 8, 8)), ("d",)),
        Line("f", MIXING[1], ("e",)),
        Line("g", operations.Binary(Combination.MULTIPLY, X, X, X), ("f", "b")),
        Line("h", operations.Mean((0,), False, X, X), ("g",)),
    )
    program = Program(lines, ("x",), ("c", "e", "g", "h"))
    x = torch.randn(6, 8, 7, 5)
    for one, other in zip(program(x), at_once(program, x), strict=True):
        assert torch.equal(one, other)
    assert sliced_steps(program)[0] == 5


@pytest.mark.parametrize(("batch", "steps"), [(4, (4, 0)), (6, (0, 4))])
def test_what_all_images_share_is_not_cut(batch, steps):
    """A sum with a row, with a value for each image, and with rows. With as many values in a row as
    there are images the row looks like a batch, and fits no plan of one image.
    """
    add = operations.Arithmetic(Calculation.SUM)
    lines = (
        Line("a", add, ("x", "row")),
        Line("b", add, ("a", "each")),
        Line("c", Normalize("softmax"), ("b",)),
        Line("d", add, ("c", "rows")),
    )
    program = Program(lines, ("x", "row", "each", "rows"), ("d",))
    x, row = torch.randn(batch, 4, 6), torch.randn(6)
    each, rows = torch.randn(batch, 1, 1), torch.randn(1, 4, 6)
    wanted = (x + row + each).softmax(-1) + rows
    torch.testing.assert_close(program(x, row, each, rows), wanted)
    assert sliced_steps(program) == steps
    shifted = program(x.transpose(0, 1), row, each.transpose(0, 1), rows.transpose(0, 1))
    torch.testing.assert_close(shifted, wanted.transpose(0, 1))


def test_sums_over_images_are_right():
    lines = (
        Line("a", Normalize("softmax"), ("x",)),
        Line("b", AddUp((0,), keepdim=False, mean=True), ("a",)),
        Line("c", AddUp((1,), keepdim=False, mean=True), ("a",)),
    )
    program, x = Program(lines, ("x",), ("b", "c")), torch.randn(8, 5, 7)
    mean, each = program(x)
    torch.testing.assert_close(mean, x.softmax(-1).mean(0))
    torch.testing.assert_close(each, x.softmax(-1).mean(1))
    assert sliced_steps(program) == (1, 2)


@pytest.mark.parametrize("masked", ["none", "shared", "own"])
def test_attention_of_each_text(masked):
    quantize = operations.Quantize(X, rows=True)
    heads = Look(lambda x: x.unflatten(-1, (2, 16)).transpose(1, 2))
    attend = Attend(
        causal=False, scale=None, shares_heads=False, levels=255, sources=(X,) * 3, out=X
    )
    names = ("h", "h", "h") if masked == "none" else ("h", "h", "h", "mask")
    lines = (Line("q", quantize, ("x",)), Line("h", heads, ("q",)), Line("y", attend, names))
    inputs = ("x",) if masked == "none" else ("x", "mask")
    program = Program(lines, inputs, ("y",))
    x = torch.randn(6, 9, 32)
    mask = torch.rand(6 if masked == "own" else 1, 1, 9, 9) < 0.7
    given = (x,) if masked == "none" else (x, mask)
    assert torch.equal(program(*given), at_once(program, *given))
    assert sliced_steps(program) == (3, 0)
