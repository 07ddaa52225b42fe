"""``octavo serve``."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Annotated

import typer

from octavo.cli import options
from octavo.cli.app import console, print_json


def serve(
    model: options.LanguageModel,
    *,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="The address to listen at. There are no passwords: others than 127.0.0.1 let "
            "whoever reaches them use the model.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Its port; 0 for any that is free.")
    ] = 8000,
    name: Annotated[
        str | None,
        typer.Option("--name", help="What clients call the model [the folder's name]."),
    ] = None,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Texts that are written at a time.")
    ] = 8,
    queue: Annotated[
        int,
        typer.Option("--queue", min=1, help="Requests that may wait; more are told to come again."),
    ] = 64,
    kv_cache: options.KVCache = options.CacheForm.float,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Serve a language model on this machine, by the interface of OpenAI.

    /v1/models, /v1/completions and /v1/chat/completions; texts of several clients are written in
    one batch, which each joins and leaves by itself. Ctrl-C ends it, when what is under way is
    written.

    **Example:** `octavo serve smol-int4 --port 8000`
    """
    from octavo.cli.serving.app import application
    from octavo.cli.serving.engine import Engine
    from octavo.cli.serving.server import bound, server_of
    from octavo.cli.sources.language_model import load_language_model, set_threads

    set_threads(threads)
    with bound(host, port) as at:
        found = load_language_model(model)
        called = found.name if name is None else name
        engine = Engine(
            found.model,
            found.tokenizer,
            most_running=batch,
            most_waiting=queue,
            int8_cache=kv_cache is options.CacheForm.int8,
        )
        where = f"http://{host}:{at.getsockname()[1]}/v1"
        if as_json:
            print_json({"model": called, "url": where})
        else:
            console().print(f"{called} at {where}; Ctrl-C ends it", highlight=False, soft_wrap=True)
        sys.stdout.flush()  # whoever started it waits for the address
        with suppress(KeyboardInterrupt):  # which uvicorn raises again when all is written
            server_of(application(engine, called)).run(sockets=[at])
    if not as_json:
        console().print(f"ended; {engine.served} texts were written", highlight=False)
