"""Runs of steps that Octavo's own kernels take: each becomes one native call.

Tested in tests/runtimes/torch/test_native_runs.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import groupby
from operator import getitem
from typing import Any, TypeVar

from octavo.graph.graph import Ref, refs_in
from octavo.graph.program import Step
from octavo.runtimes.native.planning import Operation
from octavo.runtimes.native.program import Arenas, Line, Program


@dataclass(frozen=True, eq=False)
class Either:
    """What programs can do, and torch where none runs beside it.

    Attributes:
        plain: torch's function.
        operation: the same in a program.
        reads: of the names among the step's arguments those that the operation reads, in order.
    """

    plain: Callable[..., Any]
    operation: Operation
    reads: tuple[str, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.plain(*args, **kwargs)


def _is_native(step: Step) -> bool:
    return isinstance(step.function, Program | Either)


T = TypeVar("T")


def in_long_runs(items: Sequence[T], step_of: Callable[[T], Step]) -> list[T]:
    """The same in an order in which steps that programs can do stand behind each other, as far as
    they may: whatever is ready of one kind comes before any of the other.
    """
    if not any(isinstance(step_of(item).function, Program) for item in items):
        return list(items)
    orders = [_in_runs_from(items, step_of, native) for native in (False, True)]
    return min(orders, key=lambda order: _native_runs(map(step_of, order)))


def _native_runs(steps: Iterable[Step]) -> int:
    return sum(native for native, _ in groupby(steps, _is_native))


def _in_runs_from(items: Sequence[T], step_of: Callable[[T], Step], native: bool) -> list[T]:
    made = {step_of(item).out: index for index, item in enumerate(items)}
    needs = [
        {made[name] for name in refs_in((step.args, step.kwargs)) if name in made}
        for step in map(step_of, items)
    ]
    readers: list[list[int]] = [[] for _ in items]
    for index, needed in enumerate(needs):
        for other in needed:
            readers[other].append(index)
    waiting = [len(needed) for needed in needs]
    ready: dict[bool, list[int]] = {False: [], True: []}
    for index, count in enumerate(waiting):
        if count == 0:
            ready[_is_native(step_of(items[index]))].append(index)
    order: list[T] = []
    while len(order) < len(items):
        heap = ready[native]
        heapify(heap)
        while heap:
            index = heappop(heap)
            order.append(items[index])
            for reader in readers[index]:
                waiting[reader] -= 1
                if waiting[reader] == 0:
                    kind = _is_native(step_of(items[reader]))
                    heappush(ready[kind], reader) if kind is native else ready[kind].append(reader)
        native = not native
    return order


def with_programs(steps: Sequence[Step], outputs: Sequence[str]) -> list[Step]:
    """The steps, with one for each run of programs that stand behind each other."""
    readers: dict[str, int] = dict.fromkeys(outputs, len(steps))  # a value -> who reads it last
    for index, step in enumerate(steps):
        for name in refs_in((step.args, step.kwargs)):
            readers[name] = max(index, readers.get(name, 0))
    arenas, first = Arenas(), 0
    result: list[Step] = []
    for _, run in groupby(steps, _is_native):
        members = list(run)
        first += len(members)
        if any(isinstance(step.function, Program) for step in members):
            needed = [step.out for step in members if readers.get(step.out, 0) >= first]
            result += _joined(members, needed, arenas)
        else:
            result += map(_plain, members)
    return result


def _plain(step: Step) -> Step:
    function = step.function
    return replace(step, function=function.plain) if isinstance(function, Either) else step


def _joined(members: Sequence[Step], results: Sequence[str], arenas: Arenas) -> Iterator[Step]:
    """One step in place of several, and what takes its results apart where there are more."""
    made = {step.out for step in members}
    lines = [line for step in members for line in _lines(step)]
    read = dict.fromkeys(name for line in lines for name in line.reads)
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
    if isinstance(program, Either):
        yield Line(step.out, program.operation, program.reads)
        return
    assert isinstance(program, Program)
    own = dict(zip(program.inputs, refs_in(step.args), strict=True))
    own[program.results[0]] = step.out
    for line in program.lines:
        yield Line(own[line.out], line.operation, tuple(own[name] for name in line.reads))
