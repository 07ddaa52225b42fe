"""Progress bars: on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from octavo.shown import plain

T = TypeVar("T")


def track(items: Iterable[T], description: str, enabled: bool = True) -> Iterator[T]:
    """Yield the items, with a bar on standard error where that is a terminal."""
    if not (enabled and sys.stderr.isatty()):
        yield from items
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track as rich_track

    words = escape(plain(description))
    yield from rich_track(items, words, console=Console(stderr=True), transient=True)
