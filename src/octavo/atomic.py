"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from octavo.errors import ArtifactError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a new file beside ``path``, which takes its place at the end if nothing went wrong.

    An exception (Ctrl-C is one) leaves what stood at ``path`` before, and no other file.

    Raises:
        ArtifactError: the folder cannot be written to.

    Example:
        >>> with replacing("report.json") as file:  # doctest: +SKIP
        ...     file.write_text("{}")
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        temporary = Path(name)
        os.close(handle)
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's file is the owner's alone
        os.replace(temporary, target)
    except OSError as error:
        raise ArtifactError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def require_writable(folder: str | os.PathLike[str]) -> None:
    """Make the folder where it is missing, and see that files can be written to it.

    Raises:
        ArtifactError: they cannot.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ArtifactError(f"cannot write to {folder}: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
