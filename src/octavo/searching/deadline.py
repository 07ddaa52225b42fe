"""The end of a search's time, for what is under way when it comes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")


class OutOfTime(BaseException):
    """The time is up. No ``Exception``: a user's training loop must not swallow it."""


@dataclass(frozen=True)
class Deadline:
    """A point in time, by the clock, so that it holds on other machines too.

    Attributes:
        end: in seconds since the epoch; infinite for none.
    """

    end: float = float("inf")

    @classmethod
    def within(cls, seconds: float | None) -> Deadline:
        """So long from now; ``None`` for never."""
        return cls() if seconds is None else cls(time.time() + seconds)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.time()

    def check(self) -> None:
        """Raise `OutOfTime` if it is past."""
        if self.left < 0:
            raise OutOfTime

    def over(self, batches: Iterable[T]) -> Iterable[T]:
        """The same batches, as long as there is time."""
        return _Checked(batches, self)

    @contextmanager
    def watching(self, *models: nn.Module) -> Iterator[None]:
        """Inside, no call of these models begins after it."""

        def check(module: nn.Module, args: Any) -> None:
            self.check()

        handles = [model.register_forward_pre_hook(check) for model in models]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True)
class _Checked(Iterable[T]):
    batches: Iterable[T]
    deadline: Deadline

    def __iter__(self) -> Iterator[T]:
        for batch in self.batches:
            self.deadline.check()
            yield batch
