"""What goes on, shown where it takes long.

A terminal and a notebook get a bar that moves, a log (all else: a file, a pipe, a job of CI) a line
now and then.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from html import escape
from operator import length_hint
from typing import Any, Protocol, TypeVar

from octavo.display import plain

T = TypeVar("T")
PATIENCE_S = 2.0  # until a clock shows in a terminal
PAUSE_S = 0.5  # until a bar shows in a notebook, and between two pictures of it
LOG_S = 5.0  # until the first line of a log, and between the first ones


def track(items: Iterable[T], description: str, enabled: bool = True) -> Iterator[T]:
    """Yield the items, and show on the way how many are done.

    Args:
        items: any; those that know their number show a share.
        description: what is done with them.
        enabled: whether anything is shown.
    """
    if not enabled:
        yield from items
    elif sys.stderr.isatty():
        yield from _bar(items, description)
    else:
        with _line() as line:
            total = length_hint(items) or None
            of = f" of {total}" if total else ""
            for done, item in enumerate(items):
                if done:
                    line.show(f"{description}: {done}{of}", done, total)
                yield item


@contextmanager
def waiting(description: str, enabled: bool = True) -> Iterator[None]:
    """Say what goes on inside, with a clock, once it takes long.

    Args:
        description: what it is.
        enabled: whether anything is shown.
    """
    if not enabled:
        yield
        return
    over = threading.Event()
    show = _show_clock if sys.stderr.isatty() else _show_line
    # A notebook knows by its context whose output it is.
    clock = threading.Thread(target=copy_context().run, args=(show, description, over), daemon=True)
    clock.start()
    try:
        yield
    finally:
        over.set()
        clock.join()


@contextmanager
def telling(description: str, enabled: bool = True) -> Iterator[Callable[[str], None]]:
    """A function that is told how far something is that shows bars of its own in between: it writes
    lines in terminals too, and not each time.

    Args:
        description: what it is.
        enabled: whether anything is shown.
    """
    if not enabled:
        yield lambda words: None
        return
    with _line() as line:
        yield lambda words: line.show(f"{description}: {words}")


class _Line(Protocol):
    """Where words about progress go."""

    def show(self, words: str, done: int = 0, total: int | None = None) -> None:
        """Say it, if the last time is long enough ago."""


class _Log:
    """Lines on standard error, more and more seldom, so that a day is no thousand of them."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._due = self._started + LOG_S

    def show(self, words: str, done: int = 0, total: int | None = None) -> None:
        now = time.perf_counter()
        if now < self._due:
            return
        spent = now - self._started
        self._due = now + max(LOG_S, spent / 10)
        sys.stderr.write(f"{plain(words)}, {_clock(spent)}\n")
        sys.stderr.flush()


class _Cell:
    """An output of a notebook's cell that changes, and is empty at the end."""

    def __init__(self, publish: Callable[..., object]) -> None:
        self._publish, self._key, self._shown = publish, uuid.uuid4().hex, False
        self._started = time.perf_counter()
        self._due = self._started + PAUSE_S

    def show(self, words: str, done: int = 0, total: int | None = None) -> None:
        now = time.perf_counter()
        if now < self._due:
            return
        self._due = now + PAUSE_S
        text = f"{plain(words)}, {_clock(now - self._started)}"
        share = f' value="{done / total:.3f}"' if total else ""
        bar = f'<progress aria-label="{escape(plain(words))}"{share}></progress>'
        self._put(text, f"{bar} {escape(text)}")

    def clear(self) -> None:
        if self._shown:
            self._put("", "")

    def _put(self, text: str, html: str) -> None:
        data = {"text/plain": text, "text/html": html}
        self._publish(data, transient={"display_id": self._key}, update=self._shown)
        self._shown = True


@contextmanager
def _line() -> Iterator[_Line]:
    shell = _notebook()
    if shell is None:
        yield _Log()
        return
    cell = _Cell(shell.display_pub.publish)
    try:
        yield cell
    finally:
        cell.clear()


def _notebook() -> Any:
    """The shell of the notebook that runs this; ``None`` outside of one."""
    ipython: Any = sys.modules.get("IPython")  # it is there long since, if this is one
    shell = None if ipython is None else ipython.get_ipython()
    return shell if hasattr(shell, "kernel") else None


def _clock(seconds: float) -> str:
    """Time in words."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _show_line(description: str, over: threading.Event) -> None:
    with _line() as line:
        while not over.wait(PAUSE_S):
            line.show(description)


def _bar(items: Iterable[T], description: str) -> Iterator[T]:
    from rich.console import Console
    from rich.markup import escape as escape_markup
    from rich.progress import track as rich_track

    words = escape_markup(plain(description))
    yield from rich_track(items, words, console=Console(stderr=True), transient=True)


def _show_clock(description: str, over: threading.Event) -> None:
    if over.wait(PATIENCE_S):
        return
    from rich.console import Console
    from rich.markup import escape as escape_markup
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    # The streams stay as they are, since they are the whole process's.
    with Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as shown:
        shown.add_task(escape_markup(plain(description)), total=None)
        over.wait()
