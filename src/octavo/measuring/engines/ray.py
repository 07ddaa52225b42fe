"""Ray: the processes of a cluster, of this machine or of many.

A cluster that is there is used as it is: the one that ``ray.init`` has connected this process to,
or that the environment variable RAY_ADDRESS names. Otherwise one is started on this machine, and
stopped at the end, without dashboard, usage statistics and the workers' logs.

Workers compute with as many threads as this process, so that their sums are the same to the last
bit; with fewer threads more of them run at a time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Generic
from uuid import uuid4

import torch

from octavo.errors import InputError, OctavoError, first_line, optional_import
from octavo.measuring.engines.workers import Item, Result

RETRIES = 3  # of an item whose worker died
AHEAD = 2  # items that are sent for each that is worked on, so that no worker waits


@contextmanager
def opened(make: Callable[[], Callable[[Item], Result]]) -> Iterator[RayWorkers[Item, Result]]:
    """Workers on the cluster at hand, or on one that is started for as long as this is open.

    Raises:
        MissingExtra: Ray is not installed.
        InputError: what they need cannot be sent to them.
    """
    with optional_import("ray", "ray", "run trials on a cluster"):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported
        import ray
    ours = not ray.is_initialized()
    if ours:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if "RAY_ADDRESS" in os.environ:
            ray.init(**quiet)
        else:
            ray.init("local", num_cpus=os.cpu_count(), include_dashboard=False, **quiet)
    try:
        yield RayWorkers(ray, make)
    finally:
        if ours:
            ray.shutdown()


class RayWorkers(Generic[Item, Result]):
    """Tasks on a Ray cluster; one whose worker dies is done again by another."""

    def __init__(self, ray: Any, make: Callable[[], Callable[[Item], Result]]) -> None:
        self._ray, self._key = ray, uuid4().hex
        threads = torch.get_num_threads()
        nodes = [int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"]]
        cpus = max(1, min(threads, max(nodes, default=1)))
        self.slots = max(1, sum(count // cpus for count in nodes))
        self._task = ray.remote(num_cpus=cpus, max_retries=RETRIES)(_work)
        try:
            self._made = ray.put((make, threads))
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(
                "the model, the data or a function cannot be sent to Ray's workers: "
                f"{first_line(error)}; without engine= they need not be"
            ) from error

    def run(self, items: Iterable[Item]) -> Iterator[tuple[Item, Result | OctavoError]]:
        todo = iter(items)
        pending: dict[Any, Item] = {}
        try:
            while True:
                for item in islice(todo, AHEAD * self.slots - len(pending)):
                    # In a list, so that a worker fetches it when it needs it: once.
                    pending[self._task.remote(self._key, [self._made], item)] = item
                if not pending:
                    return
                (done,), _ = self._ray.wait(list(pending), num_returns=1)
                yield pending.pop(done), self._result(done)
        finally:
            for reference in pending:
                self._ray.cancel(reference)

    def _result(self, done: Any) -> Result | OctavoError:
        errors = self._ray.exceptions
        try:
            result: Result = self._ray.get(done)
        except errors.RayTaskError as error:
            if isinstance(error.cause, errors.RayError):
                raise InputError(
                    "Ray's workers cannot load the model, the data or a function: "
                    f"{_last_line(error.cause)}; what they are made of has to be importable there"
                ) from error
            raise error.cause from error
        except errors.RayError as error:
            return OctavoError(f"its worker died {RETRIES + 1} times: {first_line(error)}")
        return result


def _last_line(error: Exception) -> str:
    """Where Ray has a traceback in a message, what it ends with."""
    return next(iter(str(error).strip().splitlines()[::-1]), type(error).__name__)


# What this worker does: by the key of the run, so that it is fetched and made once.
_works: dict[str, Callable[[Any], Any]] = {}


def _work(key: str, made: list[Any], item: Any) -> Any:
    if key not in _works:
        import ray

        make, threads = ray.get(made[0])
        torch.set_num_threads(threads)
        _works.clear()
        _works[key] = make()
    return _works[key](item)
