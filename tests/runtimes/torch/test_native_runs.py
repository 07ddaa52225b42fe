"""Which steps become one native call, and what such a call reads and gives."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.graph.graph import Ref
from octavo.graph.program import Step, compile_steps
from octavo.numerics.native import library
from octavo.runtimes.integers import Integers
from octavo.runtimes.native import operations
from octavo.runtimes.native.operations import Calculation
from octavo.runtimes.native.program import Program
from octavo.runtimes.torch.native_runs import Either, in_long_runs, with_programs

pytestmark = pytest.mark.skipif(library.library() is None, reason="make native")

MEANT = Integers(0.5, 10, 0, 255, torch.uint8)


def rounding(out: str, x: str) -> Step:
    return Step(out, Program.of(operations.Quantize(MEANT), 1), (Ref(x),))


def reading(out: str, x: str) -> Step:
    return Step(out, Program.of(operations.Dequantize(MEANT), 1), (Ref(x),))


def doubled(out: str, x: str) -> Step:
    return Step(out, torch.mul, (Ref(x), 2))


def results(steps: list[Step], outputs: list[str], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return compile_steps(["x"], steps, outputs, {})(x)


def test_neighbours_are_one_step():
    steps = [rounding("q", "x"), reading("y", "q"), rounding("z", "y")]
    (whole,) = with_programs(steps, ["z"])
    assert whole.out == "z"
    assert [line.out for line in whole.function.lines] == ["q", "y", "z"]
    assert whole.function.inputs == ("x",)
    x = torch.randn(3, 4)
    assert torch.equal(results([whole], ["z"], x)[0], results(steps, ["z"], x)[0])


def test_what_is_read_outside_is_given_as_well():
    steps = [rounding("q", "x"), reading("y", "q"), doubled("d", "y"), rounding("z", "d")]
    together = with_programs(steps, ["q", "z"])
    assert [type(step.function) is Program for step in together] == [
        True,
        False,
        False,
        False,
        True,
    ]
    assert together[0].function.results == ("q", "y")
    x = torch.randn(3, 4)
    found, wanted = (results(some, ["q", "z"], x) for some in (together, steps))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def turned(out: str, x: str) -> Step:
    """What programs can do, and torch."""
    either = Either(torch.t, operations.Look(torch.t), (x,))
    return Step(out, either, (Ref(x),))


def test_what_either_can_do_is_torchs_where_no_program_runs():
    steps = [turned("t", "x"), doubled("d", "t")]
    assert [step.function for step in with_programs(steps, ["d"])] == [torch.t, torch.mul]
    (whole,) = with_programs([turned("t", "x"), rounding("q", "t")], ["q"])
    assert [line.out for line in whole.function.lines] == ["t", "q"]
    x = torch.randn(3, 4)
    assert torch.equal(results([whole], ["q"], x)[0], rounding("q", "x").function(x.T))


def test_steps_that_wait_for_nothing_do_not_part_a_run():
    steps = [
        rounding("q", "x"),
        doubled("a", "x"),
        reading("y", "q"),
        doubled("b", "a"),
        Step("s", torch.add, (Ref("y"), Ref("b"))),
        rounding("z", "s"),
    ]
    order = in_long_runs(steps, lambda step: step)
    assert [step.out for step in order] == ["a", "b", "q", "y", "s", "z"]
    x = torch.randn(3, 4)
    assert torch.equal(results(order, ["z"], x)[0], results(steps, ["z"], x)[0])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 30)), min_size=1))
def test_any_order_makes_the_same_in_no_more_runs(nodes):
    steps = []
    for index, (native, *read) in enumerate(nodes):
        one, other = (f"v{i % index}" if index else "x" for i in read)
        function = Either(torch.add, operations.Arithmetic(Calculation.SUM), (one, other))
        whole = Program.of(function.operation, 2)
        steps.append(Step(f"v{index}", whole if native else torch.add, (Ref(one), Ref(other))))
    order = in_long_runs(steps, lambda step: step)
    assert sorted(step.out for step in order) == sorted(step.out for step in steps)
    runs = [
        sum(native for native, _ in groupby(o, lambda s: isinstance(s.function, Program)))
        for o in (order, steps)
    ]
    assert runs[0] <= runs[1]
    outputs, x = [step.out for step in steps], torch.randn(2, 3)
    found, wanted = (results(some, outputs, x) for some in (with_programs(order, outputs), steps))
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))


def test_steps_of_others_stay_as_they_are():
    steps = [doubled("a", "x"), doubled("b", "a")]
    assert with_programs(steps, ["b"]) == steps
