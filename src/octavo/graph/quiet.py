"""Without torch's warnings and log lines, in this thread alone.

Python's own ``catch_warnings`` and ``redirect_stderr`` and logging's ``disable`` swap state of the
whole process: with two threads inside, what one found there at its start stays there for good.
Here filters are added and taken away again, and let other threads' messages pass.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

_TORCHS = frozenset({"torch", "torchao", "executorch"})


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, this thread gives no Python warnings, and the loggers of torch and of what is built
    on it print nothing of it.
    """
    here = threading.get_ident()
    with _without_warnings(here), _without_torchs_logs(here):
        yield


class _Here:
    """In place of a warning's pattern: fits every text, in one thread."""

    def __init__(self, thread: int) -> None:
        self.thread = thread

    def match(self, text: str) -> bool:
        return threading.get_ident() == self.thread


@contextmanager
def _without_warnings(thread: int) -> Iterator[None]:
    entry = ("ignore", _Here(thread), Warning, None, 0)
    changed = cast(list[Any], warnings.filters)
    changed.insert(0, entry)
    try:
        yield
    finally:
        # Where another thread is inside of catch_warnings by now, it has a copy.
        for filters in (changed, cast(list[Any], warnings.filters)):
            with suppress(ValueError):
                filters.remove(entry)


@contextmanager
def _without_torchs_logs(thread: int) -> Iterator[None]:
    def keep(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.name.split(".")[0] not in _TORCHS

    known = [logging.root, *logging.root.manager.loggerDict.copy().values()]
    handlers = {
        h for logger in known if isinstance(logger, logging.Logger) for h in logger.handlers
    }
    handlers |= {logging.lastResort} if logging.lastResort else set()
    for handler in handlers:
        handler.addFilter(keep)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(keep)
