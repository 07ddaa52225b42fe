"""``octavo tune``."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.cli import options
from octavo.cli.app import console, show, tell


def tune(
    file: options.File,
    *,
    budget: Annotated[
        float,
        typer.Option("--budget", help="Seconds of trying; a trial that has begun is finished."),
    ] = 60.0,
    runtimes: options.Runtimes = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch", min=1, help="Batch size to tune for; others run too [the example's]."
        ),
    ] = None,
    data: options.SomeData = None,
    reading: options.Reading,
    out: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="The file to write [FILE itself]."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Try by measurement how a file runs fastest on this CPU, and keep that in the file.

    Whoever loads it on this kind of CPU gets it so, without measuring. Interrupted, it keeps what
    it has found, and goes on with the next call. Errors are measured on --data, or on random
    inputs.

    **Example:** `octavo tune m.octavo --budget 60`
    """
    from octavo.errors import InputError
    from octavo.model import parts_file
    from octavo.model.files.atomic import require_file
    from octavo.model.loading import load
    from octavo.runtimes import cpu

    if parts_file.holds_parts(file):
        raise InputError(
            f"{file} holds parts of a model, which are tuned in Python with the model's own code: "
            'octavo.lower(model, "fastest", tune=True), where octavo.load(path, into=model) made '
            "the model"
        )
    q = load(file, runtime="reference")
    path = file if out is None else out
    require_file(path)
    batches = None if data is None else reading.load(data, q, raw=q.pixels is not None)
    known, interrupted = dict(q.tunings), False
    try:
        q.tune(
            budget=budget,
            runtimes=options.names_of(runtimes),
            batch=batch,
            data=batches,
            progress=not as_json,
        )
    except KeyboardInterrupt:
        interrupted = True
    # After the interruption is over, with all that it held: runtimes end before the process does.
    if q.tunings != known:
        q.save(path, samples=q.samples is not None)
        show(q.tunings[cpu.kind()], as_json)
        if not as_json:
            said = (
                "the same command goes on" if interrupted else f"octavo.load({path!r}) runs it so"
            )
            console().print(f"kept in {path}; on this CPU {said}", highlight=False)
    if interrupted:
        tell(
            "interrupted"
            if q.tunings != known
            else f"interrupted before anything was found: {file} is as it was"
        )
        raise typer.Exit(130)
