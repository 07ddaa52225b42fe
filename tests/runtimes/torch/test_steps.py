"""Steps before they become one function."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from octavo.graph.graph import Ref
from octavo.graph.program import Step
from octavo.runtimes.torch.steps import Placed, with_safe_memory


def test_lowering_takes_time_in_proportion_to_the_additions():
    """Counted in lines that run: twice the additions, twice the lines."""

    def lines_for(additions: int) -> int:
        steps = [Step("0", torch.relu, (Ref("x"),))]
        steps += [Step(f"{n + 1}", torch.add, (Ref(f"{n}"),)) for n in range(additions)]
        placed = [Placed(steps[0])]
        placed += [Placed(step, overwrites=step.args[0].name) for step in steps[1:]]
        seen = 0

        def count(frame: object, event: str, arg: object) -> Callable[..., object]:
            nonlocal seen
            seen += event == "line"
            return count

        before = sys.gettrace()
        sys.settrace(count)
        try:
            kept = with_safe_memory(placed, ())
        finally:
            sys.settrace(before)
        assert kept == steps, "nothing reads what is overwritten: no copies"
        return seen

    few, twice, four_times = (lines_for(count) for count in (100, 200, 400))
    assert four_times - twice < 2.2 * (twice - few)
