"""What every engine gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from octavo.errors import OctavoError

Item = TypeVar("Item")
Result = TypeVar("Result", covariant=True)


class Workers(Protocol[Item, Result]):
    """One or more workers that do the same work on different items.

    Attributes:
        slots: how many items they work on at a time.
    """

    slots: int

    def run(self, items: Iterable[Item]) -> Iterator[tuple[Item, Result | OctavoError]]:
        """Each item with its result, as they are finished.

        Items are taken as workers get free. What the work itself raises is raised here; an item
        whose workers died again and again has an error in place of a result.
        """
        ...
