"""How much memory a model's values take while it runs: what LiteRT's planner needs.

It gives every value a place for as long as it is needed, the largest first, as low as it fits
(TensorFlow Lite's ``GreedyMemoryPlanner``). What its kernels take for themselves is not in it.

Tested in tests/runtimes/litert/test_arena.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_ALIGNMENT = 16


@dataclass(frozen=True)
class Lifetime:
    """A value: its bytes, and the first and last operator that it has to be there for."""

    size: int
    first: int
    last: int

    def overlaps(self, other: Lifetime) -> bool:
        """Whether both have to be there at once."""
        return self.first <= other.last and other.first <= self.last


def arena_bytes(lifetimes: Iterable[Lifetime]) -> int:
    """The size of an arena that holds all values when they are needed.

    Example:
        >>> arena_bytes([Lifetime(100, 0, 1), Lifetime(50, 1, 2), Lifetime(90, 2, 3)])
        176
    """
    placed: list[tuple[int, Lifetime]] = []
    for value in sorted(lifetimes, key=lambda value: -value.size):
        placed.append((_lowest_place(value, placed), value))
    return max((place + _aligned(value.size) for place, value in placed), default=0)


def _lowest_place(value: Lifetime, placed: Sequence[tuple[int, Lifetime]]) -> int:
    taken = sorted((p, p + _aligned(o.size)) for p, o in placed if o.overlaps(value))
    place = 0
    for start, end in taken:
        if start - place >= value.size:
            break
        place = max(place, end)
    return place


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
