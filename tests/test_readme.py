"""README.md tells the truth: its Python runs, and the commands it shows exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from sweeping import swept
from typer.testing import CliRunner

from octavo.cli import app
from octavo.numerics.dtypes import QDTYPES
from octavo.numerics.observers import OBSERVERS
from octavo.numerics.scheme import Scheme
from octavo.quantization.targets import TARGETS

README = Path(__file__).parents[1] / "README.md"
SITE = (
    "index",
    "start/first_model",
    "concepts/grids",
    "concepts/ranges",
    "concepts/modes",
    "serving",
)
PAGES = (
    README,
    *(
        README.parent / "docs" / f"{name}.md"
        for name in (
            "guide",
            "training",
            "analysis",
            "compat",
            "migrate",
            "transformers",
            "tuning",
            "language_models",
            *SITE,
        )
    ),
)


def fenced(text: str, language: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line that stands in a fenced block of that language."""
    inside = None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            inside = None if inside is not None else line[3:].strip()
        elif inside == language:
            yield number, line


def python_of(text: str) -> str:
    """The Python blocks as one program, every line at its own number in the text."""
    lines = [""] * len(text.splitlines())
    for number, line in fenced(text, "python"):
        lines[number - 1] = line
    return "\n".join(lines)


def commands_of(text: str) -> list[list[str]]:
    """The shell lines that call octavo, split into words; a backslash continues a line."""
    shell = "\n".join(line.removeprefix("$ ") for _, line in fenced(text, "bash"))
    lines = shell.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("octavo ")]


def octavo(*arguments: str) -> str:
    """What the command prints, on a page wide enough for every option."""
    done = CliRunner().invoke(
        app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}, terminal_width=200
    )
    assert done.exit_code == 0, done.output
    return done.output


SLOW = {page for page in PAGES if page.stem in ("analysis", "training", "tuning")} | {
    README.parent / "docs" / f"{name}.md" for name in SITE
}


@pytest.mark.parametrize("page", swept(PAGES, kept=set(PAGES) - SLOW), ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    program = python_of(page.read_text(encoding="utf-8"))
    assert "import octavo" in program
    script = tmp_path / f"{page.stem}_of_docs.py"  # a traceback's line number is the page's
    if "from transformers import" in program:  # which imports torchvision; line 1 is the title
        tests = str(Path(__file__).parent)
        program = f"import sys; sys.path.append({tests!r}); import torchvision_shim{program}"
    script.write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{page.name}'s Python failed:\n{done.stdout}{done.stderr}"


def test_the_guide_names_every_target_observer_and_scheme_setting() -> None:
    guide = (README.parent / "docs" / "guide.md").read_text(encoding="utf-8")
    settings = [field.name for field in fields(Scheme)]
    for name in (*TARGETS, *settings, *QDTYPES):
        assert f"`{name}`" in guide
    for observer in OBSERVERS.values():
        assert f"`{observer.__name__}" in guide


def test_the_commands_of_the_readme_exist() -> None:
    commands = commands_of(README.read_text(encoding="utf-8"))
    assert commands, "README.md shows no octavo command in a ```bash block"
    for _, subcommand, *words in commands:
        page = octavo(subcommand, "--help")
        for option in (word.split("=")[0] for word in words if word.startswith("-")):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", page), (
                f"README.md shows `octavo {subcommand} {option}`, its --help does not"
            )


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("a\n```python\nx = 1\n```\nb\n```python\ny = 2\n```", "\n\nx = 1\n\n\n\ny = 2\n"),
        ("```\nx = 1\n```\n```python\ny = 2\n```", "\n\n\n\ny = 2\n"),
    ],
)
def test_blocks_keep_their_line_numbers(text: str, program: str) -> None:
    assert python_of(text) == program


def test_commands_are_read_from_shell_blocks() -> None:
    text = "```bash\n$ octavo demo --out x  # why\noctavo inspect \\\n  f\nmake\n```\noctavo no"
    assert commands_of(text) == [["octavo", "demo", "--out", "x"], ["octavo", "inspect", "f"]]
