"""``package.module:name`` on a command line: the object that it means."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from typing import Any

from octavo.errors import InputError


def is_reference(text: str) -> bool:
    """Whether the text has the form ``package.module:name``.

    Example:
        >>> is_reference("torchvision.models:resnet18"), is_reference("C:/model.pt2")
        (True, False)
    """
    module, colon, name = text.partition(":")
    parts = [*module.split("."), *name.split(".")]
    return bool(colon) and all(part.isidentifier() for part in parts)


def resolve_reference(text: str) -> Any:
    """Import the module, from the current folder too, and return the object of that name.

    Raises:
        InputError: the text has another form, the module cannot be imported, or has no such name.
    """
    if not is_reference(text):
        raise InputError(
            f"{text!r} is neither a file of a known kind nor of the form package.module:name, "
            "for example mymodels.small:build"
        )
    module_name, _, path = text.partition(":")
    value: Any = _import(module_name)
    for name in path.split("."):
        if not hasattr(value, name):
            close = difflib.get_close_matches(name, dir(value), n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise InputError(f"{module_name} has no {path!r}{hint}")
        value = getattr(value, name)
    return value


def call_reference(text: str, function: Any) -> Any:
    """Call without arguments what ``text`` named; what it raises is told as the user's error.

    Raises:
        InputError: the call failed.
    """
    try:
        return function()
    except Exception as error:
        raise InputError(f"{text}() failed: {type(error).__name__}: {error}") from error


def _import(name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise InputError(
            f"cannot import {name}: {type(error).__name__}: {error}; it is looked for in the "
            f"current folder ({here}) and among the installed packages"
        ) from error
