"""Which steps become one native call, and what such a call reads and gives."""

from __future__ import annotations

import pytest
import torch

from octavo.graph.graph import Ref
from octavo.graph.program import Step, compile_steps
from octavo.numerics.native import library
from octavo.runtimes.integers import Integers
from octavo.runtimes.native import operations
from octavo.runtimes.native.program import Program
from octavo.runtimes.torch.native_runs import with_programs

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


def test_steps_of_others_stay_as_they_are():
    steps = [doubled("a", "x"), doubled("b", "a")]
    assert with_programs(steps, ["b"]) == steps
