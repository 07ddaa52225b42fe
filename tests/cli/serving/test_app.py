"""The interface of OpenAI: what comes back, streamed or whole, and what is refused how."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from small_tokenizers import llama, tokenizer

from octavo.cli.serving import app
from octavo.cli.serving.app import application
from octavo.cli.serving.engine import Engine
from octavo.model.language.choosing import Choice
from octavo.model.language.writing import Batch, Writing
from octavo.model.language.written_text import WrittenText

testclient = pytest.importorskip("fastapi.testclient")
NAME = "small"


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with testclient.TestClient(application(Engine(llama(), tokenizer()), NAME)) as found:
        yield found


def expected(
    prompt: str, most: int, choice: Choice | None = None, stop: tuple[str, ...] = ()
) -> str:
    pieces: list[str] = []
    ids = tokenizer()(prompt)["input_ids"]
    text = WrittenText(tokenizer(), ids, stop)
    batch, writing = Batch(llama()), Writing(ids, most, choice or Choice(), text, pieces.append)
    batch.add(writing)
    while not writing.ended:
        batch.step()
    return "".join(pieces)


def completion(client: Any, **asked: Any) -> Any:
    return posted(client, "/v1/completions", {"model": NAME, "temperature": 0, **asked})


def posted(client: Any, path: str, asked: Any) -> Any:
    """The answer; as JSON in ASCII, in which halves of characters can be sent."""
    headers = {"content-type": "application/json"}
    return client.post(path, content=json.dumps(asked), headers=headers)


def events(answer: Any) -> list[Any]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_the_model(client: Any) -> None:
    (one,) = client.get("/v1/models").json()["data"]
    assert (one["id"], one["object"]) == (NAME, "model")
    assert client.get(f"/v1/models/{NAME}").json() == one
    assert client.get("/v1/models/other").status_code == 404


def test_a_completion(client: Any) -> None:
    answer = completion(client, prompt="The import statement", max_tokens=9)
    assert answer.status_code == 200
    found = answer.json()
    assert found["object"] == "text_completion"
    assert found["model"] == NAME
    (choice,) = found["choices"]
    assert choice["text"] == expected("The import statement", 9)
    assert choice["finish_reason"] == "length"
    count = len(tokenizer()("The import statement")["input_ids"])
    assert found["usage"] == {
        "prompt_tokens": count,
        "completion_tokens": 9,
        "total_tokens": count + 9,
    }
    of_tokens = completion(client, prompt=tokenizer()("The import statement")["input_ids"])
    assert of_tokens.json()["usage"]["completion_tokens"] == 16  # OpenAI's own number
    assert of_tokens.json()["choices"][0]["text"].startswith(choice["text"])


def test_a_stream_is_the_same_text(client: Any) -> None:
    asked = {"prompt": "A class", "max_tokens": 12, "temperature": 0.9, "top_p": 0.8, "seed": 3}
    whole = completion(client, **asked).json()["choices"][0]["text"]
    assert whole == expected("A class", 12, Choice(0.9, 0.8, 3))
    found = events(completion(client, **asked, stream=True, stream_options={"include_usage": True}))
    *pieces, last, usage = found
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == whole
    assert {piece["choices"][0]["finish_reason"] for piece in pieces} == {None}
    assert last["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 12
    assert len({piece["id"] for piece in found}) == 1


def test_a_stop_word(client: Any) -> None:
    free = expected("A class", 20)
    word = free[6:9]
    found = completion(client, prompt="A class", max_tokens=20, stop=[word]).json()["choices"][0]
    assert (found["text"], found["finish_reason"]) == (free[: free.index(word)], "stop")


def test_a_conversation(client: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "a set?"}],
        },
    ]
    prompt = "system: Be brief.\nuser: What is a set?\nassistant:"
    asked = {"model": NAME, "messages": messages, "max_tokens": 8, "temperature": 0}
    found = client.post("/v1/chat/completions", json=asked).json()
    assert found["object"] == "chat.completion"
    message = found["choices"][0]["message"]
    assert message == {"role": "assistant", "content": expected(prompt, 8)}
    begin, *pieces, last = events(
        client.post("/v1/chat/completions", json={**asked, "stream": True})
    )
    assert begin["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(p["choices"][0]["delta"]["content"] for p in pieces) == message["content"]
    assert (last["object"], last["choices"][0]["delta"]) == ("chat.completion.chunk", {})


def test_who_shares_the_batch_does_not_matter(client: Any) -> None:
    prompts = [f"Chapter {n}: the" for n in range(6)]

    def text_of(prompt: str) -> str:
        return str(completion(client, prompt=prompt, max_tokens=10).json()["choices"][0]["text"])

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(text_of, prompts)) == [expected(prompt, 10) for prompt in prompts]


@pytest.mark.parametrize(
    ("asked", "status", "param", "words"),
    [
        ({"prompt": "a", "model": "gpt"}, 404, "model", "no model 'gpt' here: this server has"),
        ({"prompt": ""}, 400, None, "prompt is empty"),
        ({"prompt": [600]}, 400, None, "token 600 of the prompt"),
        ({"prompt": "a", "max_tokens": 300}, 400, None, "takes 256 in all"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        ({"prompt": "a", "temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ({"prompt": "a", "n": 2}, 400, "n", "Input should be 1"),
        ({"prompt": "a", "presence_penalty": 0.5}, 400, "presence_penalty", "should be 0"),
        ({"prompt": "a", "grammar": "x"}, 400, "grammar", "not permitted"),
        ({"prompt": "a\ud800"}, 400, "prompt", "half of a character"),
        ({"prompt": "a", "stop": ["b"] * 17}, 400, "stop", "at most 16"),
        ({}, 400, "prompt", "Field required"),
    ],
)
def test_what_is_refused(
    client: Any, asked: dict[str, Any], status: int, param: str | None, words: str
) -> None:
    for stream in (False, True):
        answer = completion(client, **asked, stream=stream)
        error = answer.json()["error"]
        assert answer.status_code == status
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert words in error["message"]


def test_other_paths_and_bodies(client: Any) -> None:
    assert "GET /v1/nothing" in client.get("/v1/nothing").json()["error"]["message"]
    assert client.get("/v1/completions").status_code == 405
    answer = client.post(
        "/v1/completions", content="{", headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert "JSON" in answer.json()["error"]["message"]


def test_a_conversation_with_half_of_a_character(client: Any) -> None:
    for content in ("a\ud800", [{"type": "text", "text": "a\ud800"}]):
        messages = [{"role": "user", "content": content}]
        answer = posted(client, "/v1/chat/completions", {"model": NAME, "messages": messages})
        assert answer.status_code == 400
        assert "half of a character" in answer.json()["error"]["message"]


def test_others_are_answered_while_a_prompt_becomes_tokens() -> None:
    begun, answered = Event(), Event()

    class Slow:
        decode = staticmethod(tokenizer().decode)

        def __call__(self, text: str) -> Any:
            begun.set()
            assert answered.wait(60)
            return tokenizer()(text)

    engine = Engine(llama(), tokenizer())
    with (
        testclient.TestClient(application(engine, NAME)) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        engine.tokenizer = Slow()
        long = pool.submit(completion, client, prompt="a", max_tokens=2)
        assert begun.wait(60)
        try:
            assert pool.submit(client.get, "/v1/models").result(20).status_code == 200
        finally:
            answered.set()
        assert long.result(60).status_code == 200


def test_what_nobody_thought_of_is_an_error_of_the_server() -> None:
    engine = Engine(llama(), tokenizer())
    app = application(engine, NAME)
    with testclient.TestClient(app, raise_server_exceptions=False) as client:
        engine.tokenizer = None
        answer = completion(client, prompt="a")
    assert answer.status_code == 500
    assert "TypeError" in answer.json()["error"]["message"]


def test_a_full_queue_and_a_model_that_fails() -> None:
    model = llama()
    engine = Engine(model, tokenizer(), most_waiting=0)
    with testclient.TestClient(application(engine, NAME)) as client:
        answer = completion(client, prompt="a")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        engine._most_waiting = 4
        model.model.layers[0].mlp.up_proj = None
        answer = completion(client, prompt="a")
        assert answer.status_code == 500
        assert "the model failed: TypeError" in answer.json()["error"]["message"]
        told = completion(client, prompt="a", stream=True)
        assert '"type": "server_error"' in told.text
        assert "[DONE]" not in told.text
        engine.close()
        answer = completion(client, prompt="a")
        assert answer.status_code == 503


def test_a_tokenizer_without_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer(), "chat_template", None)
    with testclient.TestClient(application(Engine(llama(), tokenizer()), NAME)) as client:
        asked = {"model": NAME, "messages": [{"role": "user", "content": "a"}]}
        answer = client.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 400
    assert "no chat template" in answer.json()["error"]["message"]


def test_a_request_that_is_too_large(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MOST_BYTES", 1000)

    def parts() -> Iterator[bytes]:  # without a length in front
        yield from [b"{" + b" " * 600, b" " * 600, b"}"]

    for content in (b"{" + b" " * 1000 + b"}", parts()):
        answer = client.post("/v1/completions", content=content)
        assert answer.status_code == 413
        assert "1000 bytes at most" in answer.json()["error"]["message"]
    assert completion(client, prompt="The set", max_tokens=2).status_code == 200


def test_a_client_that_leaves_before_the_first_line() -> None:
    from starlette.requests import ClientDisconnect

    left: list[str] = []

    async def lines() -> AsyncIterator[str]:
        left.append("a line")
        yield "a line"

    async def gone(*_: Any) -> None:
        raise OSError("the client has gone")

    async def call() -> None:
        stream = app._Stream(lines(), lambda: left.append("left"))
        with pytest.raises(ClientDisconnect):
            await stream({"type": "http", "asgi": {"spec_version": "2.4"}}, gone, gone)

    asyncio.run(call())
    assert left == ["left"]
