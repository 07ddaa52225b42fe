"""Programs: runs of steps in one native call, over memory that is planned once for each size.

Tested in tests/runtimes/native/test_program.py.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from octavo.numerics.native.library import library
from octavo.runtimes.native import structs
from octavo.runtimes.native.fusing import fused
from octavo.runtimes.native.planning import ALIGNMENT, Operation, Plan, Planner, Slices, Value
from octavo.runtimes.native.rows import Gather
from octavo.runtimes.native.slices import sliced

MOST_PLANS = 8
KEPT_BYTES = 2**26  # of an arena; a larger one is asked for at each call


class Arenas:
    """Memory that calls need for themselves, a piece for each that runs at a time."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, size: int) -> Tensor:
        """Memory of at least so many bytes."""
        try:
            arena = self._free.pop()
        except IndexError:
            return torch.empty(size, dtype=torch.uint8)
        return arena if arena.numel() >= size else torch.empty(size, dtype=torch.uint8)

    def give_back(self, arena: Tensor) -> None:
        if arena.numel() <= KEPT_BYTES:
            self._free.append(arena)


@dataclass(frozen=True)
class Line:
    """One operation of a program, with the names of what it reads and of its result."""

    out: str
    operation: Operation
    reads: tuple[str, ...]


@dataclass(eq=False)
class Program:
    """Operations in order: called with tensors, and numbers that are sizes, it gives a tensor, or a
    tuple of several.

    Plans are kept for the sizes that it met last. Several threads may call it at a time.

    Attributes:
        lines: what it does.
        inputs: names of what it is called with.
        results: names of what it gives.
    """

    lines: tuple[Line, ...]
    inputs: tuple[str, ...]
    results: tuple[str, ...]
    arenas: Arenas = field(default_factory=Arenas)
    _plans: dict[Any, Plan] = field(default_factory=dict)
    _planning: Any = field(default_factory=threading.Lock)
    _gathers: list[tuple[int, Gather]] = field(init=False)  # the inputs that number rows

    def __post_init__(self) -> None:
        self._gathers = [
            (self.inputs.index(line.reads[0]), line.operation)
            for line in self.lines
            if isinstance(line.operation, Gather)
        ]

    @staticmethod
    def of(operation: Operation, count: int) -> Program:
        """Of one operation that reads so many values."""
        names = tuple(map(str, range(count)))
        return Program((Line("result", operation, names),), names, ("result",))

    def __call__(self, *given: Tensor | int) -> Any:
        threads = torch.get_num_threads()
        # Memory holds what is meant.
        given = tuple(x.resolve_neg() if isinstance(x, Tensor) else x for x in given)
        for index, gather in self._gathers:
            rows = given[index]
            assert isinstance(rows, Tensor)
            gather.check(rows)
        tensors = [x for x in given if isinstance(x, Tensor)]
        for tensor in tensors:
            if not tensor.is_cpu:  # its address means nothing here
                raise RuntimeError(f'an input is on {tensor.device}: give it x.to("cpu")')
        numbers = [x for x in given if not isinstance(x, Tensor)]
        key = (threads, *numbers, *[(tensor.shape, tensor.stride()) for tensor in tensors])
        plan = self._plans.get(key)
        if plan is None:
            plan = self._planned(key, threads, given)
        # Whoever calls may train on results: of inference mode, they had to be copied for that.
        with torch.inference_mode(mode=False):
            made = [torch.empty_strided(*like, dtype=dtype) for *like, dtype in plan.made]
        memory = [*tensors, *made]
        size, slices = -(-plan.arena // ALIGNMENT) * ALIGNMENT, plan.slices
        arena = self.arenas.take(size + (slices.arena * threads if slices else 0))
        addresses = [arena.data_ptr(), *[tensor.data_ptr() for tensor in memory]]
        loaded = library()
        bases = (ctypes.c_void_p * len(addresses))(*addresses)
        count = ctypes.c_int64(len(plan.steps))
        if (
            loaded is None
            or (slices and _run_slices(loaded, slices, addresses, size, threads))
            or loaded.octavo_run(plan.steps, count, bases, threads)
        ):
            raise MemoryError("no memory for the steps of a program")
        self.arenas.give_back(arena)
        results = [
            memory[view.memory] if view.place is None else _seen(memory[view.memory], *view.place)
            for view in plan.results
        ]
        return results[0] if len(results) == 1 else tuple(results)

    def _planned(self, key: Any, threads: int, given: Sequence[Tensor | int]) -> Plan:
        planner = Planner(threads)
        results = self._steps(planner, given)
        plan = planner.finished(results, sliced(self._steps, given, planner))
        with self._planning:
            kept = list(self._plans.items())[1 - MOST_PLANS :]
            self._plans = dict([*kept, (key, plan)])
        return plan

    def _steps(self, planner: Planner, given: Sequence[Tensor | int]) -> list[Value]:
        """Plan all lines; the results."""
        values: dict[str, Any] = {}
        for name, x in zip(self.inputs, given, strict=True):
            values[name] = planner.given(x) if isinstance(x, Tensor) else x
        for line in self.lines:
            read = [values[name] for name in line.reads]
            values[line.out] = line.operation.plan(planner, *read)
        results = [values[name] for name in self.results]
        planner.steps = fused(planner.steps, {value.buffer for value in results})
        return results


def _run_slices(
    loaded: ctypes.CDLL, slices: Slices, addresses: Sequence[int], own: int, threads: int
) -> int:
    """Not 0 where there is no memory.

    Args:
        addresses: of a call.
        own: where memory for the slices begins in its arena.
    """
    arena, *others = addresses
    kept = [arena + offset for offset in slices.kept]
    bases = (ctypes.c_void_p * len(slices.pitches))(arena + own, *others, *kept)
    pitches = (ctypes.c_int64 * len(slices.pitches))(*slices.pitches)
    of = structs.SlicesStruct(
        steps=ctypes.addressof(slices.steps),
        count=len(slices.steps),
        parts=slices.count,
        arena=slices.arena,
        base_count=len(slices.pitches),
        pitches=ctypes.addressof(pitches),
    )
    return int(loaded.octavo_run_slices(ctypes.byref(of), bases, threads))


def _seen(tensor: Tensor, sizes: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Tensor:
    return tensor.as_strided(sizes, strides, int(tensor.storage_offset()) + offset)
