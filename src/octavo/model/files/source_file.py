"""A file that somebody names, before a reader takes it."""

from __future__ import annotations

import difflib
import os
import stat
from itertools import islice
from pathlib import Path


def check_file(path: Path) -> None:
    """See that there is a file to read: a pipe may never end, and readers say odd things of others.

    Raises:
        OSError: there is none, it is a folder, a pipe or a device, or may not be read.
        ValueError: it is empty.

    Example:
        >>> check_file(Path("/"))
        Traceback (most recent call last):
        IsADirectoryError: it is a folder
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"there is no such file{_near(path)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError("it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is a pipe or a device, not a file")
    if not status.st_size:
        raise ValueError("it is empty")
    if not os.access(path, os.R_OK):
        raise PermissionError("you may not read it")


def _near(path: Path) -> str:
    """A file beside it whose name is nearly the same, as a hint."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, _MOST_NAMES)]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.8)
    return f"; did you mean {str(path.with_name(close[0]))!r}?" if close else ""


_MOST_NAMES = 1000  # of a folder that are looked at


def reason(error: Exception) -> str:
    """What an error of a reader says, on one line."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    if "trust_remote_code" in text:  # an argument of transformers, which Octavo does not hand on
        return "its model needs code of its own, which Octavo does not run"
    return text or type(error).__name__
