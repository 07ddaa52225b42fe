"""Which steps of a plan become one, and that results stay as they are."""

from __future__ import annotations

import pytest
import torch

from octavo.numerics.native import library
from octavo.runtimes.integers import Integers
from octavo.runtimes.native import operations
from octavo.runtimes.native.convolution import Activation, Convolution, Epilogue, Geometry
from octavo.runtimes.native.operations import Arithmetic, Calculation, Look
from octavo.runtimes.native.program import Line, Program
from octavo.runtimes.native.rows import Attend, Normalize
from octavo.runtimes.native.structs import Kind

pytestmark = pytest.mark.skipif(library.library() is None, reason="make native")

MEANT = Integers(0.05, 120, 0, 255, torch.uint8)
SUM, NORM = Arithmetic(Calculation.SUM), Normalize("layer_norm", 1, 1e-5)
TURNED = Look(torch.transpose, (0, 1))


def layer(activation: Activation = Activation.NONE) -> operations.Layer:
    torch.manual_seed(0)
    weight = torch.randint(-127, 128, (8, 1, 1, 8), dtype=torch.int8)
    epilogue = Epilogue(torch.full((8,), 0.001), torch.randn(8), activation=activation)
    return operations.Layer(Convolution.of(Geometry(8, 8), weight, 120, epilogue), rows=True)


def run(lines: list[Line], results: tuple[str, ...], **given: torch.Tensor) -> list[Kind]:
    """The kinds of the steps; results are those of the steps one by one."""
    whole = Program(tuple(lines), tuple(given), results)
    have = whole(*given.values())
    have = have if isinstance(have, tuple) else (have,)
    known = dict(given)
    for line in lines:
        known[line.out] = Program.of(line.operation, len(line.reads))(
            *(known[n] for n in line.reads)
        )
    for name, result in zip(results, have, strict=True):
        assert torch.equal(result, known[name]), name
    (plan,) = whole._plans.values()
    first = plan.slices.steps if plan.slices else ()
    return [Kind(step.kind) for step in (*first, *plan.steps)]


X, Q = torch.randn(3, 5, 8), torch.randint(0, 256, (3, 5, 8), dtype=torch.uint8)


def test_a_layer_adds_floats_that_were_there():
    lines = [Line("a", layer(), ("q",)), Line("y", SUM, ("a", "x"))]
    assert run(lines, ("y",), q=Q, x=X) == [Kind.CONVOLVE]
    lines = [Line("a", layer(), ("q",)), Line("y", SUM, ("x", "a"))]
    assert run(lines, ("y",), q=Q, x=X) == [Kind.CONVOLVE]


def test_a_layer_adds_through_another_look():
    lines = [
        Line("a", layer(), ("q",)),
        Line("t", TURNED, ("a",)),
        Line("u", TURNED, ("x",)),
        Line("y", SUM, ("t", "u")),
    ]
    assert run(lines, ("y",), q=Q, x=X) == [Kind.CONVOLVE]


@pytest.mark.parametrize(
    ("first", "results"),
    [(layer(Activation.GELU), ("y",)), (layer(), ("a", "y"))],
    ids=["an activation", "read twice"],
)
def test_a_layer_stays_where_more_becomes_of_it(first, results):
    lines = [Line("a", first, ("q",)), Line("y", SUM, ("a", "x"))]
    assert run(lines, results, q=Q, x=X) == [Kind.CONVOLVE, Kind.CALCULATE]


def test_of_two_layers_the_later_adds_the_other():
    lines = [Line("a", layer(), ("q",)), Line("b", layer(), ("q",)), Line("y", SUM, ("a", "b"))]
    assert run(lines, ("y",), q=Q) == [Kind.CONVOLVE, Kind.CONVOLVE]


def test_a_sum_that_broadcasts_or_turns_stays():
    for other in (X[:1], X[..., :1], torch.randn(5, 3, 8).transpose(0, 1)):
        lines = [Line("a", layer(), ("q",)), Line("y", SUM, ("a", "x"))]
        assert run(lines, ("y",), q=Q, x=other) == [Kind.CONVOLVE, Kind.CALCULATE]


def test_a_norm_adds_what_stands_before_it():
    lines = [Line("s", SUM, ("x", "z")), Line("y", NORM, ("s",))]
    assert run(lines, ("y",), x=X, z=torch.randn(3, 5, 8)) == [Kind.NORMALIZE]
    assert run(lines, ("s", "y"), x=X, z=torch.randn(3, 5, 8)) == [Kind.CALCULATE, Kind.NORMALIZE]
    assert run(lines, ("y",), x=X, z=torch.randn(8)) == [Kind.CALCULATE, Kind.NORMALIZE]


@pytest.mark.parametrize("results", [("y",), ("n", "y"), ("y", "n")])
def test_a_norm_rounds_its_result(results):
    lines = [
        Line("n", NORM, ("x",)),
        Line("t", TURNED, ("n",)),
        Line("y", operations.Quantize(MEANT, rows=True), ("t",)),
    ]
    assert run(lines, results, x=X) == [Kind.NORMALIZE]


def test_a_norm_rounds_once():
    other = Integers(0.1, 100, 0, 255, torch.uint8)
    lines = [
        Line("n", NORM, ("x",)),
        Line("y", operations.Quantize(MEANT, rows=True), ("n",)),
        Line("z", operations.Quantize(other, rows=True), ("n",)),
    ]
    assert run(lines, ("y", "z"), x=X) == [Kind.NORMALIZE, Kind.QUANTIZE]


def test_a_part_of_a_norm_is_rounded_by_itself():
    lines = [
        Line("n", NORM, ("x",)),
        Line("p", Look(torch.narrow, (0, 1, 2)), ("n",)),
        Line("y", operations.Quantize(MEANT, rows=True), ("p",)),
    ]
    assert run(lines, ("y",), x=X) == [Kind.NORMALIZE, Kind.QUANTIZE]


@pytest.mark.parametrize("results", [("y",), ("y", "f")])
def test_attention_rounds_its_result_where_nothing_reads_the_floats(results):
    attend = Attend(False, None, False, 255, (MEANT,) * 3, None)
    lines = [
        Line("a", attend, ("q", "q", "q")),
        Line("t", Look(torch.transpose, (1, 2)), ("a",)),
        Line("f", Look(torch.flatten, (2,)), ("t",)),
        Line("y", operations.Quantize(MEANT, rows=True), ("f",)),
    ]
    q = torch.randint(0, 256, (2, 3, 5, 8), dtype=torch.uint8)
    kinds = run(lines, results, q=q)
    assert kinds == [Kind.PACK_HEADS, Kind.ATTEND, *[Kind.QUANTIZE] * (len(results) - 1)]


def test_a_row_of_layers_keeps_its_sums_apart():
    lines = [
        Line("q", operations.Quantize(MEANT, rows=True), ("x",)),
        Line("a", layer(), ("q",)),
        Line("s", SUM, ("a", "x")),
        Line("n", NORM, ("s",)),
        Line("r", operations.Quantize(MEANT, rows=True), ("n",)),
        Line("b", layer(), ("r",)),
        Line("y", SUM, ("b", "s")),
    ]
    assert run(lines, ("y",), x=X) == [Kind.QUANTIZE, Kind.CONVOLVE, Kind.NORMALIZE, Kind.CONVOLVE]
