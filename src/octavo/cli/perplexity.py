"""``octavo perplexity``."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.cli import options
from octavo.cli.app import console, print_json


def perplexity(
    model: options.LanguageModel,
    text: Annotated[
        str, typer.Option("--text", metavar="FILE", help="A file of text, UTF-8, to judge by.")
    ],
    *,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="MODEL",
            help="Another model of the same tokens, the float one mostly: its perplexity, and how "
            "near to it the next tokens' distributions are.",
        ),
    ] = None,
    window: Annotated[
        int, typer.Option("--window", min=2, help="Tokens that the model sees at a time.")
    ] = 512,
    stride: Annotated[
        int | None,
        typer.Option("--stride", min=1, help="By so many tokens the window moves [half a window]."),
    ] = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Tell how well a language model knows a text: the perplexity of its tokens.

    **Example:** `octavo perplexity smol-int4 --text notes.txt --against smol`
    """
    import torch

    from octavo.cli.sources.language_model import load_language_model, set_threads, text_of_file
    from octavo.errors import InputError
    from octavo.measuring.text_quality import text_quality
    from octavo.progress import waiting

    set_threads(threads)
    words = text_of_file(text)
    found = load_language_model(model)
    tokens = found.tokens_of(words, text)
    other = None if against is None else load_language_model(against)
    if other is not None and other.tokens_of(words, text) != tokens:
        raise InputError(
            f"{model} and {against} make different tokens of {text}: perplexities of different "
            "tokens cannot be compared"
        )
    for one in (found, other):
        if one is not None:
            one.check_window(min(window, len(tokens) - 1))
    with waiting(f"reading {len(tokens)} tokens", not as_json):
        quality = text_quality(
            found.model,
            torch.tensor(tokens),
            reference=None if other is None else other.model,
            window=window,
            stride=stride,
        )
    told = {"model": model, "against": against, "tokenizer": type(found.tokenizer).__name__}
    if as_json:
        print_json({**told, **quality.to_dict()})
        return
    console().print(quality)
    console().print(f"tokens of {model}, by its {told['tokenizer']}", highlight=False)
