"""A real server: clients that go away, an end that waits for what is under way, a taken port."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from small_tokenizers import llama, tokenizer

from octavo.errors import InputError

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from octavo.cli.serving.app import application
from octavo.cli.serving.engine import Engine
from octavo.cli.serving.server import bound, server_of

WAIT_S = 60  # only until something is wrong


class Running:
    """A server in a thread, whose model can be made to wait."""

    def __init__(self) -> None:
        model = llama(max_position_embeddings=4000)
        self.go = threading.Event()
        self.go.set()
        self.calls = 0
        model.register_forward_pre_hook(self._called)
        self.engine = Engine(model, tokenizer(), most_running=2)
        self.server = server_of(application(self.engine, "small"))
        self.at = bound("127.0.0.1", 0)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.at]})
        self.thread.start()
        until(lambda: self.server.started)

    def _called(self, *call: object) -> None:
        self.calls += 1
        assert self.go.wait(WAIT_S)

    def ask(self, **asked: object) -> socket.socket:
        """A request, whose answer nobody has read yet."""
        body = json.dumps({"model": "small", "prompt": "A", "temperature": 0, **asked}).encode()
        made = socket.create_connection(self.at.getsockname(), timeout=WAIT_S)
        head = (
            "POST /v1/completions HTTP/1.1",
            "Host: x",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        )
        made.sendall("".join(f"{line}\r\n" for line in (*head, "")).encode() + body)
        return made

    def end(self) -> None:
        self.go.set()
        self.server.should_exit = True
        self.thread.join(WAIT_S)


def whole(client: socket.socket) -> bytes:
    """All that is said until the server closes."""
    found = b""
    while part := client.recv(100_000):
        found += part
    return found


def until(true: object) -> None:
    start = time.monotonic()
    while not true():  # type: ignore[operator]
        assert time.monotonic() - start < WAIT_S
        time.sleep(0.005)


@pytest.fixture
def running() -> Iterator[Running]:
    found = Running()
    yield found
    found.end()


@pytest.mark.parametrize("stream", [False, True])
def test_when_the_client_goes_its_text_leaves(running: Running, stream: bool) -> None:
    client = running.ask(max_tokens=3900, stream=stream)
    until(lambda: running.calls > 3)
    client.close()
    until(lambda: not running.engine._running)
    before = running.calls
    assert before < 3000
    with running.ask(max_tokens=2) as other:
        assert b'"finish_reason":"length"' in whole(other).replace(b" ", b"")
    assert running.calls <= before + 3
    assert running.engine.served == 1


def test_the_end_waits_for_what_is_under_way(running: Running) -> None:
    running.go.clear()
    client = running.ask(max_tokens=5)
    until(lambda: running.calls)
    running.server.should_exit = True
    until(lambda: not running.server.servers[0].is_serving())
    with pytest.raises(OSError):  # noqa: PT011  (refused, in the words of the system)
        socket.create_connection(running.at.getsockname(), timeout=1).close()
    running.go.set()
    with client:
        assert b'"completion_tokens":5' in whole(client).replace(b" ", b"")
    running.thread.join(WAIT_S)
    assert running.engine.served == 1
    assert not running.engine._thread.is_alive()


def test_an_address_that_cannot_be_had() -> None:
    with bound("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 is in use"):
            bound("127.0.0.1", port)
    with pytest.raises(InputError, match=r"cannot listen at 203\.0\.113\.7:80"):
        bound("203.0.113.7", 80)
