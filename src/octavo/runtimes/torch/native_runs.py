"""Runs of steps that Octavo's own kernels take: each becomes one native call.

Tested in tests/runtimes/torch/test_native_runs.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import getitem

from octavo.graph.graph import Ref, refs_in
from octavo.graph.program import Step
from octavo.runtimes.native.program import Arenas, Line, Program


def with_programs(steps: Sequence[Step], outputs: Sequence[str]) -> list[Step]:
    """The steps, with one for each run of programs that stand behind each other."""
    readers: dict[str, int] = dict.fromkeys(outputs, len(steps))  # a value -> who reads it last
    for index, step in enumerate(steps):
        for name in refs_in((step.args, step.kwargs)):
            readers[name] = max(index, readers.get(name, 0))
    arenas, first = Arenas(), 0
    result: list[Step] = []
    for is_native, run in groupby(steps, lambda step: isinstance(step.function, Program)):
        members = list(run)
        first += len(members)
        if is_native:
            needed = [step.out for step in members if readers.get(step.out, 0) >= first]
            result += _joined(members, needed, arenas)
        else:
            result += members
    return result


def _joined(members: Sequence[Step], results: Sequence[str], arenas: Arenas) -> Iterator[Step]:
    """One step in place of several, and what takes its results apart where there are more."""
    made = {step.out for step in members}
    lines = [line for step in members for line in _lines(step)]
    read = dict.fromkeys(name for step in members for name in refs_in(step.args))
    inputs = tuple(name for name in read if name not in made)
    program = Program(tuple(lines), inputs, tuple(results), arenas)
    args = tuple(map(Ref, inputs))
    if len(results) == 1:
        yield Step(results[0], program, args)
        return
    whole = f"{results[0]}.run"
    yield Step(whole, program, args)
    for index, name in enumerate(results):
        yield Step(name, getitem, (Ref(whole), index))


def _lines(step: Step) -> Iterator[Line]:
    """What a step's program does, with the names that values have in the whole."""
    program = step.function
    assert isinstance(program, Program)
    own = dict(zip(program.inputs, refs_in(step.args), strict=True))
    own[program.results[0]] = step.out
    for line in program.lines:
        yield Line(own[line.out], line.operation, tuple(own[name] for name in line.reads))
