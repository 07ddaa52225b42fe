"""Programs that are made for inputs of one size: one each for the sizes that were met last.

Tested in tests/runtimes/test_sized_programs.py.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

P = TypeVar("P")
S = TypeVar("S", bound=Hashable)


class SizedPrograms(Generic[S, P]):
    """A program for each size, made when it is first asked for and kept while it is used.

    Calls may overlap: each is made once for all, and those of known sizes go on meanwhile.

    Args:
        make: the program of a size.
        most: how many are kept.

    Example:
        >>> programs = SizedPrograms(lambda size: [0] * size, most=2)
        >>> programs.of(3) is programs.of(3)
        True
    """

    def __init__(self, make: Callable[[S], P], most: int) -> None:
        self.make, self.most = make, most
        self.known: OrderedDict[S, P] = OrderedDict()
        self.looking, self.making = threading.Lock(), threading.Lock()

    def of(self, size: S) -> P:
        """The program of a size; what making it raises goes to the caller."""
        known = self._met(size)
        if known is not None:
            return known
        with self.making:
            known = self._met(size)  # another call had the same size
            if known is not None:
                return known
            program = self.make(size)
            with self.looking:
                self.known[size] = program
                if len(self.known) > self.most:
                    self.known.popitem(last=False)
            return program

    def _met(self, size: S) -> P | None:
        """The program of a size that was met before, which is the last one met now."""
        with self.looking:
            if size in self.known:
                self.known.move_to_end(size)
            return self.known.get(size)
