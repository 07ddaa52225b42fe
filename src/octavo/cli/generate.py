"""``octavo generate``."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from octavo.cli import options
from octavo.cli.app import console, print_json


def generate(
    model: options.LanguageModel,
    prompt: Annotated[
        str, typer.Option("--prompt", metavar="TEXT", help="The text to go on from.")
    ],
    *,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="The prompt is said to an assistant, by the model's template."),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Tokens to write at most.")
    ] = 128,
    temperature: Annotated[
        float,
        typer.Option("--temperature", help="0: the most likely token; above: one is drawn."),
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option("--top-p", help="Draw from the most likely tokens with this share together."),
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of what is drawn [another each time].")
    ] = None,
    kv_cache: options.KVCache = options.CacheForm.float,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Write on from a prompt, token by token; speed and memory are told at the end.

    **Example:** `octavo generate smol-int4 --prompt "The capital of France is"`
    """
    from octavo.cli.sources.language_model import load_language_model, set_threads
    from octavo.display import plain
    from octavo.measuring.cold_start import peak_mb
    from octavo.model.language.chat import prompt_of
    from octavo.model.language.choosing import Choice
    from octavo.model.language.writing import Batch, Writing
    from octavo.model.language.written_text import WrittenText

    set_threads(threads)
    choice = Choice(temperature, top_p, seed)
    found = load_language_model(model)
    if chat:
        tokens = prompt_of([{"role": "user", "content": prompt}], found.tokenizer)
    else:
        tokens = found.tokens_of(prompt, "--prompt")
    batch = Batch(found.model, kv_cache is options.CacheForm.int8)
    pieces: list[str] = []

    def tell(text: str) -> None:
        pieces.append(text)
        if not as_json:
            sys.stdout.write(plain(text, "\n\t"))
            sys.stdout.flush()

    most = batch.room(tokens, max_new_tokens)
    writing = Writing(tokens, most, choice, WrittenText(found.tokenizer, tokens), tell)
    batch.add(writing)
    started = time.perf_counter()
    first, cache, interrupted = 0.0, 0, False
    try:
        while writing.ended is None:
            batch.step()
            first = first or (time.perf_counter() - started if writing.is_read else 0.0)
            cache = max(cache, batch.cache.nbytes)
    except KeyboardInterrupt:
        interrupted = True
    seconds = time.perf_counter() - started - first
    if writing.error is not None:
        raise writing.error
    count = len(writing.tokens)
    told = {
        "text": "".join(pieces),
        "ended": writing.ended,
        "prompt_tokens": len(tokens),
        "tokens": count,
        "first_token_s": first,
        "tokens_per_second": (count - 1) / seconds if count > 1 and seconds > 0 else None,
        "weight_bytes": found.weight_bytes,
        "cache_bytes": cache,
        "peak_mb": peak_mb(),
    }
    if as_json:
        print_json(told)
    else:
        speed = told["tokens_per_second"]
        console().print(
            f"\n\n{count} tokens"
            + (f" at {speed:.1f} a second" if isinstance(speed, float) else "")
            + f"; the first after {first:.2f} s, behind a prompt of {len(tokens)}\n"
            f"weights {found.weight_bytes / 1e6:.1f} MB, cache {cache / 1e6:.1f} MB, "
            f"the process held at most {peak_mb():.0f} MB",
            highlight=False,
        )
    if interrupted:
        raise typer.Exit(130)
