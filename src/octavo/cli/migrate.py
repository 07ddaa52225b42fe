"""``octavo migrate``."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.cli import options
from octavo.cli.app import print_json, print_text


def migrate(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH", callback=options.named, help="A Python file, or a folder of them."
        ),
    ],
    write: Annotated[
        bool, typer.Option("--write", help="Change the files. Without it they are only shown.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Move code from torch.ao.quantization or TinyNeuralNetwork to octavo.compat.

    Shows the change as a diff, then what has a better native call, then what cannot be moved, with
    file, line and reason; exit code 1 if there is any such place.

    **Example:** `octavo migrate src --write`
    """
    from octavo.compat.migrate import migrate as migrate_sources

    found = migrate_sources(path, write=write, progress=not as_json)
    if as_json:
        print_json(found.to_dict())
    else:
        print_text(f"{found.diff}\n{found}" if found.diff else str(found))
    if not found.complete:
        raise typer.Exit(1)
