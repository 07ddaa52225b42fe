"""`Engine`: one thread that writes the texts of all requests, in one batch.

A request waits in a queue of bounded length until the batch has a place. It joins between two steps
of the model, and leaves when its text has ended, or nobody wants it any more.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from octavo.errors import OctavoError, RuntimeUnavailable, first_line
from octavo.model.language.choosing import Choice
from octavo.model.language.writing import Batch, Writing
from octavo.model.language.written_text import WrittenText


class QueueFull(RuntimeUnavailable):
    """As many requests wait as may."""


class Closing(RuntimeUnavailable):
    """The server takes no more requests."""


@dataclass(frozen=True)
class Piece:
    """Some more text."""

    text: str


@dataclass(frozen=True)
class Ended:
    """The text is whole: why it ended, and how many tokens it has."""

    why: str
    tokens: int


@dataclass(frozen=True)
class Failed:
    """There will be no more of the text."""

    error: OctavoError


Event = Piece | Ended | Failed


@dataclass(eq=False)
class Ticket:
    """One request's text: what is to be written, and who listens."""

    writing: Writing
    listen: Callable[[Event], None]
    cancelled: bool = False


class Engine:
    """Writes texts for many at a time.

    Args:
        model: a causal language model of transformers.
        tokenizer: its own.
        most_running: texts in the batch.
        most_waiting: requests in the queue.
        int8_cache: keys and values are kept in int8.

    Attributes:
        served: so many requests have got their whole text.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        most_running: int = 8,
        most_waiting: int = 64,
        int8_cache: bool = False,
    ) -> None:
        self.tokenizer, self.served = tokenizer, 0
        self._most_running, self._most_waiting = most_running, most_waiting
        self._batch = Batch(model, int8_cache)
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="octavo engine", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def submit(
        self,
        prompt: list[int],
        most: int | None,
        choice: Choice,
        stop: tuple[str, ...],
        listen: Callable[[Event], None],
    ) -> Ticket:
        """Put a request into the queue; any thread may.

        Args:
            prompt: tokens.
            most: tokens to write at most; ``None`` for as many as the model takes.
            choice, stop: as `Writing` and `WrittenText` have them.
            listen: is called with each event, from the engine's thread.

        Raises:
            InputError: the request cannot be written.
            QueueFull: too many wait.
            Closing: the server ends.
        """
        most = self._batch.room(prompt, most)
        text = WrittenText(self.tokenizer, prompt, stop)
        writing = Writing(prompt, most, choice, text, lambda piece: listen(Piece(piece)))
        ticket = Ticket(writing, listen)
        with self._changed:
            if self._closing:
                raise Closing("the server is about to end: it takes no more requests")
            if len(self._waiting) >= self._most_waiting:
                raise QueueFull(f"{len(self._waiting)} requests wait already: try again later")
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody wants a text any more: it leaves before the next step; any thread may say so."""
        with self._changed:
            ticket.cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            self._changed.notify()

    def close(self) -> None:
        """End: texts under way are given up, and told so."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while self._admit():
            try:
                self._batch.step()
            except Exception as error:  # noqa: BLE001  (it ends its texts, not the server)
                self._fail(_as_ours(error))
            self._tell_who_ended()
        self._fail(Closing("the server has ended before the text was whole"))

    def _admit(self) -> bool:
        """Wait for something to do, and let requests join and leave; whether to go on."""
        with self._changed:
            while not (self._closing or self._waiting or self._running):
                self._changed.wait()
            if self._closing:
                return False
            for ticket in [each for each in self._running if each.cancelled]:
                self._running.remove(ticket)
                self._batch.remove(ticket.writing)
            while self._waiting and len(self._running) < self._most_running:
                ticket = self._waiting.popleft()
                self._running.append(ticket)
                self._batch.add(ticket.writing)
        return True

    def _tell_who_ended(self) -> None:
        for ticket in [each for each in self._running if each.writing.ended]:
            self._running.remove(ticket)
            writing = ticket.writing
            if writing.error is not None:
                ticket.listen(Failed(writing.error))
            else:
                self.served += 1
                ticket.listen(Ended(str(writing.ended), len(writing.tokens)))

    def _fail(self, error: OctavoError) -> None:
        """All texts of the batch fail, and when the server ends those that wait too."""
        with self._changed:
            lost = [*self._running, *(self._waiting if self._closing else ())]
            self._running.clear()
            self._batch.clear()
            if self._closing:
                self._waiting.clear()
        for ticket in lost:
            ticket.listen(Failed(error))


def _as_ours(error: Exception) -> OctavoError:
    if isinstance(error, OctavoError):
        return error
    return RuntimeUnavailable(f"the model failed: {type(error).__name__}: {first_line(error)}")
