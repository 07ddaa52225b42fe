"""The command ``octavo``."""

from __future__ import annotations

from octavo.cli.app import app
from octavo.cli.compare import compare
from octavo.cli.demo import demo
from octavo.cli.inspect import inspect
from octavo.cli.quantize import quantize

__all__ = ["app", "main"]

for command in (demo, quantize, compare, inspect):
    app.command()(command)


def main() -> None:
    """Entry point of the command; ends the process with its exit code."""
    app()
