"""Real texts that every machine has: the docstrings of Python's standard library."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

FEWEST_WORDS = 5
_NOT_OF_THE_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests"})


def docstrings(count: int) -> list[str]:
    """So many different ones, in an order that is random but always the same.

    Raises:
        ValueError: the library at hand has fewer.
    """
    found = {text for file in _sources() for text in _texts_of(file)}
    if len(found) < count:
        raise ValueError(f"the standard library has {len(found)} docstrings, not {count}")
    return sorted(found, key=lambda text: hashlib.sha256(text.encode()).digest())[:count]


def _sources() -> Iterator[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(root.rglob("*.py")):
        if not _NOT_OF_THE_LIBRARY.intersection(file.relative_to(root).parts):
            yield file


def _texts_of(file: Path) -> Iterator[str]:
    """The docstrings of a module, its classes and functions, in one line each."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # there are templates among them
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            words = (ast.get_docstring(node) or "").split()
            if len(words) >= FEWEST_WORDS:
                yield " ".join(words)
