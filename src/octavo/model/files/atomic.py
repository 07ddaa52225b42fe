"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from octavo.errors import ArtifactError

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where what a killed process left behind stays
    fcntl = None  # type: ignore[assignment]

# Of folders that hold a file until it is whole; nobody else names a folder so.
_NAME = ".octavo-{}.tmp"
_TOKEN_BYTES = 8


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a new, empty file, which takes the place of ``path`` if nothing went wrong.

    As with ``open(path, "w")``, a link is followed, and a file that is there keeps its permissions
    and its owner, as far as the process may give them. An exception (Ctrl-C is one) leaves what
    stood at ``path`` before, and nothing else, not even a new folder around it; what a killed
    process left is removed by the next one that writes to the same folder.

    Raises:
        ArtifactError: the folder cannot be written to, or ``path`` is not a file.

    Example:
        >>> with replacing("report.json") as file:  # doctest: +SKIP
        ...     file.write_text("{}")
    """
    target = Path(os.path.realpath(path))
    try:
        before = _status_of(target)
        with _folder_in(target.parent) as folder:
            temporary = folder / target.name
            temporary.touch()
            mode = temporary.stat().st_mode if before is None else before.st_mode
            yield temporary
            if before is not None and hasattr(os, "chown"):
                with suppress(PermissionError):
                    os.chown(temporary, before.st_uid, before.st_gid)
            temporary.chmod(stat.S_IMODE(mode))  # some writers make files of the owner's alone
            os.replace(temporary, target)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {_why(error)}") from error


@contextmanager
def filling(path: str | os.PathLike[str], last: str) -> Iterator[Path]:
    """Yields a new, empty folder, whose files move into the folder ``path`` if nothing went wrong.

    An exception leaves what was in ``path`` before, and nothing else; what a killed process left is
    removed by the next one that writes there.

    Args:
        path: of the folder, which is made where it is missing.
        last: name of the file that moves behind all others: without it the folder is none.

    Raises:
        ArtifactError: the folder cannot be written to.
    """
    target = Path(os.path.realpath(path))
    try:
        with _folder_in(target) as folder:
            yield folder
            probe = folder / ".mode"
            probe.touch()
            mode = stat.S_IMODE(probe.stat().st_mode)
            probe.unlink()
            for file in sorted(folder.iterdir(), key=lambda file: (file.name == last, file.name)):
                if file.is_file():
                    file.chmod(mode)  # some writers make files of the owner's alone
                os.replace(file, target / file.name)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {_why(error)}") from error


def overwrite(path: str | os.PathLike[str], old: bytes, new: bytes) -> None:
    """Change what a file holds and nothing else of it.

    Its owner, permissions, hard links and extended attributes stay; of a link, what it points to is
    changed. If writing fails, the file holds the old content again.

    Raises:
        ArtifactError: it is read-only (even where the superuser writes), holds something else than
            ``old``, or cannot be written.
    """
    try:
        _status_of(Path(path))
        with FileIO(path, "r+") as file:
            if file.read() != old:
                raise ArtifactError(f"cannot write {path}: it has changed since it was read")
            try:
                _fill(file, new)
            except BaseException:
                _fill(file, old)
                raise
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error


def require_writable(folder: str | os.PathLike[str]) -> None:
    """See that files can be written to a folder, which may be missing yet: nothing is made.

    Raises:
        ArtifactError: they cannot.
    """
    try:
        path = Path(folder).absolute()
        there = next(part for part in (path, *path.parents) if part.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ArtifactError(f"cannot write to {folder}: {_why(error)}") from error


def require_file(path: str | os.PathLike[str]) -> None:
    """See that a file can be written there, before the work that makes it.

    Raises:
        ArtifactError: it cannot: a folder or a device is there, or its folder cannot be written to.
    """
    target = Path(os.path.realpath(path))
    try:
        _status_of(target)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {_why(error)}") from error
    require_writable(target.parent if os.path.islink(path) else Path(path).parent)


def _why(error: OSError) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "it, or what it should be in, is a file and not a folder"
    return error.strerror or str(error)


def _status_of(target: Path) -> os.stat_result | None:
    """Of the file that is there; ``None`` without one.

    Raises:
        OSError: it is not to be written: the superuser could replace a device, or a file that its
            owner has protected.
    """
    try:
        status = target.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(status.st_mode):
        raise OSError("it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is a device or a pipe, not a file")
    if not status.st_mode & 0o222:
        raise OSError("it is read-only")
    return status


@contextmanager
def _folder_in(parent: Path) -> Iterator[Path]:
    """A new folder that is removed at the end, locked while this process uses it. Of folders that
    are made around it an exception leaves none.
    """
    missing = [part for part in (parent, *parent.parents) if not part.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        with _locked_folder(parent) as folder:
            yield folder
    except BaseException:
        for part in missing:
            with suppress(OSError):  # another process has written to it
                part.rmdir()
        raise


@contextmanager
def _locked_folder(parent: Path) -> Iterator[Path]:
    while True:
        folder = parent / _NAME.format(secrets.token_hex(_TOKEN_BYTES))
        folder.mkdir(0o700)
        lock = _lock(folder, wait=True)
        if folder.exists():  # another process may have found it before it was locked
            break
        _unlock(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def _remove_abandoned(parent: Path) -> None:
    """The folders of processes that have ended: nobody locks them."""
    for folder in parent.glob(_NAME.format("?" * 2 * _TOKEN_BYTES)):
        lock = _lock(folder, wait=False)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            _unlock(lock)


def _lock(folder: Path, *, wait: bool) -> int | None:
    """A handle that locks a folder until it is closed; ``None`` where there is no such lock."""
    if fcntl is None:
        return None
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # it is gone, locked, or on a file system without locks
        _unlock(handle)
        return None
    return handle


def _unlock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _fill(file: FileIO, content: bytes) -> None:
    file.seek(0)
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
    file.truncate()
