"""This process, one item after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic

from octavo.measuring.engines.workers import Item, Result


class InProcess(Generic[Item, Result]):
    """Workers that are this process."""

    slots = 1

    def __init__(self, work: Callable[[Item], Result]) -> None:
        self._work = work

    def run(self, items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        for item in items:
            yield item, self._work(item)
