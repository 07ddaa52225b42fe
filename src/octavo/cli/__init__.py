"""The command ``octavo``.

All of it is tested in tests/cli/test_cli.py, tests/cli/test_cli_analysis.py,
tests/cli/test_language_models.py, tests/cli/test_mistakes.py, tests/cli/test_output.py,
tests/cli/test_run.py and tests/cli/test_tune.py.
"""

from __future__ import annotations

import sys
from io import TextIOWrapper

from octavo.cli.app import app
from octavo.cli.bench import bench
from octavo.cli.compare import compare
from octavo.cli.debug import debug
from octavo.cli.demo.command import demo
from octavo.cli.doctor import doctor
from octavo.cli.export import export
from octavo.cli.generate import generate
from octavo.cli.inspect import inspect
from octavo.cli.migrate import migrate
from octavo.cli.options import spread
from octavo.cli.perplexity import perplexity
from octavo.cli.quantize import quantize
from octavo.cli.report import report
from octavo.cli.run import run
from octavo.cli.search import search
from octavo.cli.sensitivity import sensitivity
from octavo.cli.serve import serve
from octavo.cli.tune import tune
from octavo.cli.verify import verify

__all__ = ["app", "main"]

for command in (
    demo,
    quantize,
    compare,
    inspect,
    debug,
    sensitivity,
    search,
    report,
    verify,
    bench,
    tune,
    export,
    generate,
    perplexity,
    serve,
    run,
    migrate,
    doctor,
):
    app.command()(spread(command))


def main() -> None:
    """Entry point of the command; ends the process with its exit code."""
    if isinstance(sys.stdout, TextIOWrapper):
        # For names that the terminal has no signs for.
        sys.stdout.reconfigure(errors="backslashreplace")
    app()
