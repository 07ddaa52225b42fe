"""Requests join and leave the batch; the queue is bounded; what ends, fails or is given up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from small_tokenizers import llama, tokenizer

from octavo.cli.serving.engine import Closing, Ended, Engine, Event, Failed, Piece, QueueFull
from octavo.errors import InputError
from octavo.model.language.choosing import Choice

GREEDY = Choice()
WAIT_S = 60  # only until something is wrong


class Listener:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.over, self.begun = threading.Event(), threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.begun.set()
        if not isinstance(event, Piece):
            self.over.set()

    def wait(self) -> Event:
        assert self.over.wait(WAIT_S)
        return self.events[-1]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Piece))


class Held:
    """A model whose calls wait until they may go on."""

    def __init__(self) -> None:
        self.model = llama()
        self.go = threading.Event()
        self.broken = False
        self.model.register_forward_pre_hook(self._hold)

    def _hold(self, *call: Any) -> None:
        assert self.go.wait(WAIT_S)
        if self.broken:
            raise RuntimeError("out of memory")


@pytest.fixture
def held() -> Iterator[Held]:
    found = Held()
    yield found
    found.go.set()


def ids(text: str) -> list[int]:
    return list(tokenizer()(text)["input_ids"])


def ask(engine: Engine, prompt: str, most: int | None, choice: Choice = GREEDY) -> Listener:
    listener = Listener()
    engine.submit(ids(prompt), most, choice, (), listener)
    return listener


def test_many_get_what_each_would_get_alone() -> None:
    prompts = [f"The statement {n} is" for n in range(7)]
    choices = [GREEDY, Choice(0.7, 0.9, 5)]
    together = Engine(llama(), tokenizer(), most_running=3)
    together.start()
    asked = [ask(together, text, 5 + n, choices[n % 2]) for n, text in enumerate(prompts)]
    found = [(listener.wait(), listener.text) for listener in asked]
    together.close()
    assert together.served == 7
    for place, text in enumerate(prompts):
        engine = Engine(llama(), tokenizer(), most_running=1)
        engine.start()
        listener = ask(engine, text, 5 + place, choices[place % 2])
        assert (listener.wait(), listener.text) == found[place]
        engine.close()
    assert found[0][0] == Ended("length", 5)


def test_the_queue_is_bounded(held: Held) -> None:
    engine = Engine(held.model, tokenizer(), most_running=1, most_waiting=2)
    engine.start()
    first = ask(engine, "a", 3)
    while engine._waiting:  # until the batch has taken it
        pass
    others = [ask(engine, "b", 3), ask(engine, "c", 3)]
    with pytest.raises(QueueFull, match="2 requests wait already"):
        ask(engine, "d", 3)
    held.go.set()
    assert [each.wait() for each in (first, *others)] == [Ended("length", 3)] * 3
    assert isinstance(ask(engine, "d", 3).wait(), Ended)
    engine.close()


def test_who_goes_makes_room(held: Held) -> None:
    engine = Engine(held.model, tokenizer(), most_running=1)
    held.go.set()
    engine.start()
    endless = Listener()
    ticket = engine.submit(ids("a"), 255, GREEDY, (), endless)
    waiting = Listener()
    given_up = engine.submit(ids("b"), 255, GREEDY, (), waiting)
    next_one = ask(engine, "c", 3)
    assert endless.begun.wait(WAIT_S)
    engine.cancel(given_up)
    engine.cancel(ticket)
    assert next_one.wait() == Ended("length", 3)
    assert not endless.over.is_set()
    assert not waiting.events
    engine.close()


def test_a_model_that_fails_ends_its_texts_alone(held: Held) -> None:
    engine = Engine(held.model, tokenizer())
    held.broken = True
    engine.start()
    lost = ask(engine, "a", 3)
    held.go.set()
    failed = lost.wait()
    assert isinstance(failed, Failed)
    assert "the model failed: RuntimeError: out of memory" in str(failed.error)
    held.broken = False
    assert ask(engine, "a", 3).wait() == Ended("length", 3)
    engine.close()


def test_closing_tells_all(held: Held) -> None:
    engine = Engine(held.model, tokenizer(), most_running=1)
    engine.start()
    running, waiting = ask(engine, "a", 100), ask(engine, "b", 3)
    closing = threading.Thread(target=engine.close)
    closing.start()
    while not engine._closing:
        pass
    with pytest.raises(Closing, match="about to end"):
        ask(engine, "c", 3)
    held.go.set()
    for each in (running, waiting):
        failed = each.wait()
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, Closing)
    closing.join(WAIT_S)


def test_requests_that_cannot_be_written() -> None:
    engine = Engine(llama(), tokenizer())
    with pytest.raises(InputError, match="prompt is empty"):
        engine.submit([], 3, GREEDY, (), Listener())
    with pytest.raises(InputError, match="takes 256 in all"):
        engine.submit([1] * 200, 57, GREEDY, (), Listener())
