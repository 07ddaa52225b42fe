"""How long calls take, measured side by side.

A CPU's clock, its caches and its neighbours change from second to second. So the contenders take
turns, round by round, in an order that rotates, and speed is compared within a round: what slows
one of them slows all of them.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from octavo.errors import InputError
from octavo.progress import track

Call = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)

WARM_UP_CALLS = 3
TURN_S = 0.005  # short calls are repeated until a turn lasts about this long ...
MAX_REPEATS = 20  # ... but not more often than this
DEFAULT_BUDGET_S = 10.0
MIN_ROUNDS, MAX_ROUNDS = 5, 200
REST_S = 0.1  # what threads of other libraries need to come to rest


@dataclass(frozen=True)
class Latency:
    """The times of one contender: a list of calls (in seconds) for each round."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def median_s(self) -> float:
        """The median over all calls, in seconds."""
        return statistics.median(self._calls())

    @property
    def p95_s(self) -> float:
        """The time that 95 % of the calls stay within, in seconds."""
        calls = sorted(self._calls())
        return calls[math.ceil(0.95 * len(calls)) - 1]

    def speedup_over(self, other: Latency) -> float:
        """How many times faster than ``other``: the median of the ratios within each round."""
        pairs = zip(other.rounds, self.rounds, strict=True)
        return statistics.median(
            statistics.median(theirs) / statistics.median(ours) for theirs, ours in pairs
        )

    def _calls(self) -> list[float]:
        return [seconds for turn in self.rounds for seconds in turn]


def interleave(
    calls: Mapping[Name, Call],
    *,
    rounds: int | None = None,
    budget_s: float = DEFAULT_BUDGET_S,
    rest_s: float = 0.0,
    progress: bool = False,
) -> dict[Name, Latency]:
    """Time all calls in turns, in this process, after a warm-up of each.

    Args:
        calls: name (or what else tells them apart) -> a function without arguments.
        rounds: how many rounds; ``None`` takes as many as fit into ``budget_s`` seconds, but at
            least 5 and at most 200.
        rest_s: seconds to wait before each turn, and then a call that is not counted: for
            contenders with threads of their own, which go on spinning after a call and take the
            cores from the next contender.
        progress: a bar in terminals and notebooks, lines in logs.

    Raises:
        InputError: ``rounds`` is less than 1.

    Example:
        >>> times = interleave({"a": lambda: sum(range(100)), "b": lambda: None}, rounds=3)
        >>> len(times["a"].rounds)
        3
    """
    if rounds is not None and rounds < 1:
        raise InputError(f"rounds={rounds}: at least 1 round is needed")
    repeats = {name: _warm_up(call) for name, call in calls.items()}
    times: dict[Name, list[tuple[float, ...]]] = {name: [] for name in calls}
    names = list(calls)
    started = time.perf_counter()
    with _no_collection():
        for index in track(range(rounds or MAX_ROUNDS), "timing", progress):
            for name in names:
                if rest_s:
                    time.sleep(rest_s)
                    calls[name]()
                times[name].append(_turn(calls[name], repeats[name]))
            names.append(names.pop(0))
            spent = time.perf_counter() - started
            if rounds is None and index + 1 >= MIN_ROUNDS and spent > budget_s:
                break
    return {name: Latency(tuple(turns)) for name, turns in times.items()}


@contextmanager
def thread_count(threads: int | None) -> Iterator[int]:
    """Inside, torch computes with so many threads (``None``: as it is); yields the number.

    Raises:
        InputError: ``threads`` is less than 1.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads={threads}: at least 1 thread is needed")
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _warm_up(call: Call) -> int:
    """Call a few times; how many calls make a turn follows from the fastest of them."""
    fastest = min(_turn(call, WARM_UP_CALLS))
    return max(1, min(MAX_REPEATS, math.ceil(TURN_S / max(fastest, 1e-9))))


def _turn(call: Call, repeats: int) -> tuple[float, ...]:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return tuple(seconds)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the times, as ``timeit`` does.

    Nothing is collected before: that takes seconds in a process with many objects.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
