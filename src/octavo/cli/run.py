"""``octavo run``."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from octavo.cli import options
from octavo.cli.app import UsageError, app, console, print_json


def run(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A file of TOML: a table for each command, with the command's options. Python "
            "code that it names is imported and run, as the commands do.",
        ),
    ],
    *,
    as_json: options.Json = False,
) -> None:
    """Do a whole job that is written down: quantize, verify, compare, export, bench.

    Paths are those of the recipe's folder. Steps behind `quantize` work on the file that it wrote;
    the first that fails ends the job, with its exit code.

    **Example:** `octavo run recipe.toml`
    """
    from octavo.cli.recipe import inherited, read
    from octavo.errors import InputError

    path = Path(recipe)
    steps = read(path)
    commands: Any = typer.main.get_command(app)
    results: dict[str, Any] = {}
    known: dict[str, Any] = {}
    with _working_in(path.resolve().parent):
        for number, step in enumerate(steps, start=1):
            command = commands.commands[step.command]
            words = step.words(_options_of(command), known)
            if not as_json:
                console().print(
                    f"[{number}/{len(steps)}] octavo {' '.join([step.command, *words])}"
                )
            told = io.StringIO()
            try:
                with redirect_stdout(told if as_json else sys.stdout):
                    code = command.main(
                        ["--json"] * as_json + words,
                        prog_name=f"octavo {step.command}",
                        standalone_mode=False,
                    )
            except (InputError, UsageError) as error:
                said = getattr(error, "message", None) or str(error)
                raise InputError(f"{step.place}: {said}") from error
            if as_json:
                results[f"{number} {step.command}"] = json.loads(told.getvalue() or "null")
            if code:
                if as_json:
                    print_json(results)
                raise typer.Exit(code)
            known = inherited(step, known)
    if as_json:
        print_json(results)


def _options_of(command: Any) -> list[Any]:
    """What a recipe may say of it: all but how results are printed."""
    left_out = ("help", "as_json")
    return [parameter for parameter in command.params if parameter.name not in left_out]


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
