"""``octavo verify``."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.cli import options
from octavo.cli.app import show


def verify(
    file: options.File,
    *,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help=f"{options.DATA_HELP} [random inputs]"),
    ] = None,
    runtimes: options.Runtimes = None,
    reading: options.Reading,
    as_json: options.Json = False,
) -> None:
    """Check that the runtimes agree with the oracle, layer by layer; exit code 1 if one does not.

    **Example:** `octavo verify m.octavo --data test.npz`
    """
    from octavo.errors import InputError
    from octavo.measuring.parity import verify as verify_model
    from octavo.model import parts_file
    from octavo.model.loading import load

    if parts_file.holds_parts(file):
        q = parts_file.skeleton(parts_file.read(file))
        if data is not None:
            raise InputError("--data needs the model's own code: octavo.verify(q, data) in Python")
    else:
        q = load(file, runtime="reference")
    names = options.names_of(runtimes)
    batches = None if data is None else reading.load(data, q, raw=q.pixels is not None)
    found = verify_model(q, batches, runtimes=names, progress=not as_json)
    show(found, as_json)
    if not found.passed:
        raise typer.Exit(1)
