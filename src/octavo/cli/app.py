"""The frame of all commands: errors, exit codes, output."""

from __future__ import annotations

import errno
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from octavo.display import finite, plain
from octavo.errors import OctavoError, OctavoWarning
from octavo.version import __version__

NARROW_OUTPUT_WIDTH = 120  # of text that goes to a file or a pipe

# The base of what the command line may be wrong in; where it is defined, typer has changed.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

EPILOG = (
    "Exit codes: 0 done, 1 something you gave cannot be used (one line on standard error says "
    "what), 2 the command line is wrong, 130 interrupted."
)


class Screen(Console):
    """Shows text as it is: no word is markup, and no character a command to the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain(text, "\n"), **options)


class _Commands(TyperGroup):
    """Turns an `OctavoError` into one line on standard error and exit code 1, Ctrl-C into 130."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with _words_are_plain():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        if ctx.params.get("debug"):
            return super().invoke(ctx)
        try:
            with warnings.catch_warnings(), _words_are_plain():
                warnings.simplefilter("ignore")  # torch's own, on the way through torch.export
                warnings.simplefilter("always", OctavoWarning)
                warnings.showwarning = lambda message, *place: tell(f"warning: {message}")
                result = super().invoke(ctx)
                sys.stdout.flush()  # a full disk shows here
                return result
        except KeyboardInterrupt:
            tell("interrupted")
            raise typer.Exit(130) from None
        except OctavoError as error:
            tell(str(error))
            raise typer.Exit(1) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # `octavo ... | head`: click ends without a word
                raise
            where = f"{error.filename}: " if error.filename else ""
            tell(f"{where}{error.strerror or error}")
            raise typer.Exit(1) from error


@contextmanager
def _words_are_plain() -> Iterator[None]:
    """In what click says of a command line: its words may be names of files."""
    try:
        yield
    except UsageError as error:
        vars(error)["message"] = plain(str(vars(error)["message"]), "\n")
        raise


def tell(message: str) -> None:
    """One line on standard error."""
    words = plain(" ".join(message.split("\n")))
    line = Text("octavo: ", style="bold red").append(words, style="default")
    Screen(stderr=True, soft_wrap=True).print(line)


app = typer.Typer(
    name="octavo",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=True,
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


def console() -> Screen:
    """Standard output; wide enough for a table where it is not a terminal."""
    out = Screen()
    return out if out.is_terminal else Screen(width=NARROW_OUTPUT_WIDTH)


def print_json(data: Any) -> None:
    """JSON and nothing else on standard output; it knows no infinity and no NaN: ``null``."""
    sys.stdout.write(json.dumps(finite(data), indent=2, allow_nan=False) + "\n")


def show(result: Any, as_json: bool) -> None:
    """A result as it prints itself, or as JSON."""
    if as_json:
        print_json(result.to_dict())
    else:
        console().print(result)


def print_text(text: str) -> None:
    """Lines as they are, for other programs as well; line ends may be CR LF."""
    lines = (plain(line, "\t") for line in text.replace("\r\n", "\n").split("\n"))
    sys.stdout.write("\n".join(lines) + "\n")
