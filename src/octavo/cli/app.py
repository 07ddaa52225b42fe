"""The frame of all commands: errors, exit codes, output."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from octavo.errors import OctavoError
from octavo.model import OctavoWarning
from octavo.version import __version__

NARROW_OUTPUT_WIDTH = 120  # of text that goes to a file or a pipe

EPILOG = (
    "Exit codes: 0 done, 1 something you gave cannot be used (one line on standard error says "
    "what), 2 the command line is wrong, 130 interrupted."
)


class _Commands(TyperGroup):
    """Turns an `OctavoError` into one line on standard error and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        if ctx.params.get("debug"):
            return super().invoke(ctx)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, on the way through torch.export
                warnings.simplefilter("always", OctavoWarning)
                warnings.showwarning = lambda message, *place: _tell(f"warning: {message}")
                return super().invoke(ctx)
        except OctavoError as error:
            _tell(str(error))
            raise typer.Exit(1) from error


def _tell(message: str) -> None:
    line = Text("octavo: ", style="bold red").append(message.replace("\n", " "), style="default")
    Console(stderr=True, soft_wrap=True).print(line)


app = typer.Typer(
    name="octavo",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"octavo {__version__}")
        raise typer.Exit


@app.callback(epilog=EPILOG)
def octavo(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, and all warnings.")
    ] = False,
) -> None:
    """Fold a trained PyTorch model into eight bits, measure what that did, ship it as one file.

    Start with `octavo demo --out demo`, which needs no model and no data of yours.
    """


def console() -> Console:
    """Standard output; wide enough for a table where it is no terminal."""
    out = Console()
    return out if out.is_terminal else Console(width=NARROW_OUTPUT_WIDTH)


def print_json(data: Any) -> None:
    """JSON and nothing else on standard output."""
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")
