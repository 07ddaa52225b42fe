"""The application: requests in, texts out, by the interface of OpenAI."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from octavo.cli.serving import answers
from octavo.cli.serving.answers import Answer
from octavo.cli.serving.engine import Closing, Ended, Engine, Event, Failed, Piece, QueueFull
from octavo.cli.serving.protocol import ChatRequest, CompletionRequest
from octavo.errors import InputError, OctavoError, first_line, optional_import
from octavo.model.language.chat import prompt_of

with optional_import("fastapi", "serve", "serve language models"):
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response, StreamingResponse
    from starlette.exceptions import HTTPException

MOST_BYTES = 8 * 2**20  # of a request: some two million tokens of text
_LOOK_S = 0.1  # how often it is seen whether the client is still there


class UnknownModel(InputError):
    """A request is for another model."""


def application(engine: Engine, name: str) -> FastAPI:
    """The application of one model.

    Args:
        engine: which writes its texts; it begins and ends with the application.
        name: what the model is called.
    """

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.close)

    app, created = FastAPI(title=f"octavo serve {name}", lifespan=life), int(time.time())
    _tell_errors(app)
    app.add_middleware(_Limited)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return answers.model_list(name, created)

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        _check_name(model, name)
        return answers.model_of(name, created)

    @app.post("/v1/completions")
    async def completions(asked: CompletionRequest, http: Request) -> Response:
        _check_name(asked.model, name)
        prompt = asked.prompt
        if isinstance(prompt, str):  # in a thread: of a long one it takes seconds, and others go on
            found = await asyncio.to_thread(engine.tokenizer, prompt)
            prompt = [int(token) for token in found["input_ids"]]
        return await _answered(engine, asked, prompt, Answer(name, False, len(prompt)), http)

    @app.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, http: Request) -> Response:
        _check_name(asked.model, name)
        said = [message.plain() for message in asked.messages]
        prompt = await asyncio.to_thread(prompt_of, said, engine.tokenizer)
        return await _answered(engine, asked, prompt, Answer(name, True, len(prompt)), http)

    return app


async def _answered(
    engine: Engine,
    asked: CompletionRequest | ChatRequest,
    prompt: list[int],
    answer: Answer,
    http: Request,
) -> Response:
    """Put a request into the queue; its whole text, or a stream of its pieces."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def listen(event: Event) -> None:
        with suppress(RuntimeError):  # the loop has ended: so has the client
            loop.call_soon_threadsafe(events.put_nowait, event)

    ticket = engine.submit(prompt, asked.most, asked.choice, asked.stops, listen)

    def leave() -> None:
        engine.cancel(ticket)

    if asked.stream:
        return _Stream(_streamed(events, answer, asked.with_usage), leave)
    whole = await _while_there(http, _collected(events, answer), leave)
    return Response(status_code=499) if whole is None else JSONResponse(whole)


async def _collected(events: asyncio.Queue[Event], answer: Answer) -> dict[str, Any]:
    """The whole text.

    Raises:
        OctavoError: it could not be written.
    """
    text = ""
    while True:
        event = await events.get()
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Ended):
            return answer.whole(text, event.why, event.tokens)
        text += event.text


async def _while_there(
    http: Request, whole: Awaitable[dict[str, Any]], leave: Callable[[], None]
) -> dict[str, Any] | None:
    """The text, or ``None`` when the client has gone before it was whole."""
    writing = asyncio.ensure_future(whole)
    try:
        while not writing.done():
            await asyncio.wait({writing}, timeout=_LOOK_S)
            if not writing.done() and await http.is_disconnected():
                return None
        return writing.result()
    finally:
        writing.cancel()
        leave()


async def _streamed(
    events: asyncio.Queue[Event], answer: Answer, with_usage: bool
) -> AsyncIterator[str]:
    """Pieces as events."""
    begin = answer.first()
    if begin is not None:
        yield answers.event(begin)
    while True:
        event = await events.get()
        if isinstance(event, Piece):
            yield answers.event(answer.piece(event.text))
        elif isinstance(event, Failed):
            yield answers.event(_told(event.error)[1])
            return
        else:
            yield answers.event(answer.last(event.why))
            if with_usage:
                yield answers.event(answer.usage_alone(event.tokens))
            yield answers.END_OF_STREAM
            return


class _Stream(StreamingResponse):
    """Lines of a text, which leaves the batch when the client goes, be it before the first line."""

    def __init__(self, lines: AsyncIterator[str], leave: Callable[[], None]) -> None:
        super().__init__(lines, media_type="text/event-stream")
        self._leave = leave

    async def __call__(self, *scope_receive_send: Any) -> None:
        try:
            await super().__call__(*scope_receive_send)
        finally:
            self._leave()


class _Limited:
    """An application that reads at most `MOST_BYTES` of a request."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        said = headers.get(b"content-length", b"")
        size = int(said) if said.isdigit() else 0
        is_large, count = size > MOST_BYTES, 0

        async def limited() -> Any:
            nonlocal count
            message = {"body": b""} if is_large else await receive()
            count += len(message.get("body", b""))
            if is_large or count > MOST_BYTES:
                raise HTTPException(413, f"a request has {MOST_BYTES} bytes at most")
            return message

        await self.app(scope, limited if scope["type"] == "http" else receive, send)


def _check_name(asked: str, name: str) -> None:
    if asked != name:
        raise UnknownModel(f"there is no model {asked!r} here: this server has {name!r}")


def _told(error: OctavoError) -> tuple[int, dict[str, Any]]:
    """Status and body of an error."""
    words = str(error)
    if isinstance(error, UnknownModel):
        return 404, answers.error_of(words, "invalid_request_error", "model", "model_not_found")
    if isinstance(error, QueueFull):
        return 429, answers.error_of(words, "requests", None, "rate_limit_exceeded")
    if isinstance(error, Closing):
        return 503, answers.error_of(words, "server_error", None, "unavailable")
    if isinstance(error, InputError):
        return 400, answers.error_of(words, "invalid_request_error")
    return 500, answers.error_of(words, "server_error")


def _tell_errors(app: FastAPI) -> None:
    """Errors of all kinds go out in OpenAI's form."""

    @app.exception_handler(OctavoError)
    async def ours(_: Request, error: OctavoError) -> JSONResponse:
        status, body = _told(error)
        again = {"Retry-After": "1"} if status in (429, 503) else None
        return JSONResponse(body, status, again)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        words = f"{param}: {first['msg']}" if param else str(first["msg"])
        return JSONResponse(answers.error_of(words, "invalid_request_error", param), 400)

    @app.exception_handler(Exception)
    async def unknown(_: Request, error: Exception) -> JSONResponse:  # it is logged, too
        words = f"the server failed: {type(error).__name__}: {first_line(error)}"
        return JSONResponse(answers.error_of(words, "server_error"), 500)

    @app.exception_handler(HTTPException)
    async def other(http: Request, error: HTTPException) -> JSONResponse:
        words = f"{http.method} {http.url.path}: {error.detail}"
        body = answers.error_of(words, "invalid_request_error")
        return JSONResponse(body, error.status_code, error.headers)
