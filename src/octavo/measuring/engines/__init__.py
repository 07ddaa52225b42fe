"""Engines: where independent pieces of work are done, each engine in a file of its own.

The default is this process, one piece after the other. An engine's module is imported when it is
asked for, and only it imports its package.

All of it is tested in tests/measuring/engines/test_ray.py and
tests/measuring/layers/test_sensitivity.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module

from octavo.arguments import TEXT, optional
from octavo.errors import InputError
from octavo.measuring.engines.in_process import InProcess
from octavo.measuring.engines.workers import Item, Result, Workers

ENGINES = {"ray": "octavo.measuring.engines.ray"}

__all__ = ["ENGINES", "Workers", "opened", "require"]


def require(engine: str | None) -> None:
    """That there is such an engine.

    Raises:
        InputError: there is none.
    """
    optional(TEXT, engine=engine)
    if engine is not None and engine not in ENGINES:
        raise InputError(
            f"engine is {engine!r}; one of {sorted(ENGINES)}, or None for this process"
        )


def opened(
    engine: str | None, make: Callable[[], Callable[[Item], Result]]
) -> AbstractContextManager[Workers[Item, Result]]:
    """Workers that do what ``make()`` returns, which each of them makes once.

    Args:
        engine: ``None`` for this process, or one of `ENGINES`.
        make: gives a function from an item to its result; both travel to other processes if the
            engine has any.

    Raises:
        InputError: there is no such engine.
        MissingExtra: its package is not installed.

    Example:
        >>> with opened(None, lambda: abs) as workers:
        ...     list(workers.run([-1, 2]))
        [(-1, 1), (2, 2)]
    """
    require(engine)
    if engine is None:
        return nullcontext(InProcess(make()))
    workers: AbstractContextManager[Workers[Item, Result]]
    workers = import_module(ENGINES[engine]).opened(make)
    return workers
