"""`migrate`: the Python files of a folder, read, shown and written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from octavo.atomic import replacing
from octavo.errors import InputError
from octavo.migrate.result import FileMigration, Migration, Note
from octavo.migrate.rewrite import rewrite
from octavo.progress import track

# A file without any of these has nothing to move, and need not be parsed.
_WORDS = (b"quantiz", b"torchao", b"torch.ao", b"nn.qat", b"nn.intrinsic", b"tinynn")
_NOT_OURS = {"__pycache__", "node_modules", "site-packages"}
_NOTEBOOK = (
    "notebooks are not read: make a script of it with jupyter nbconvert --to script, migrate that, "
    "and take over its lines"
)


def migrate(
    path: str | os.PathLike[str], *, write: bool = False, progress: bool = True
) -> Migration:
    """Move code from torch.ao.quantization and TinyNeuralNetwork to octavo.compat.

    Args:
        path: a Python file, or a folder, whose files are found in all its sub-folders. Hidden
            folders, virtual environments and links to folders are left out.
        write: change the files; each is there whole or as it was.
        progress: show a progress bar on a terminal.

    Returns:
        What changes, has a better native call, and cannot be moved.

    Raises:
        InputError: there is no such file or folder, or the file is no Python.
        MissingExtra: libcst is not installed.
        ArtifactError: a file cannot be written.

    Example:
        >>> found = migrate("src")  # doctest: +SKIP
        >>> print(found.diff)  # doctest: +SKIP
    """
    root = Path(path)
    files = []
    read = 0
    for file in track(list(_sources(root)), "reading", progress):
        try:
            source = file.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror or error}") from error
        read += file.suffix != ".ipynb"
        if not any(word in source for word in _WORDS):
            continue
        if file.suffix == ".ipynb":
            files.append(FileMigration(str(file), "", "", kept=(Note(0, "notebook", _NOTEBOOK),)))
            continue
        found, new = rewrite(str(file), source)
        if write and found.changed:
            _write(file, new)
            now, _ = rewrite(str(file), new)  # its lines have other numbers
            found = replace(found, remarks=now.remarks, kept=now.kept)
        if found.changed or found.remarks or found.kept:
            files.append(found)
    return Migration(tuple(files), read, write)


def _sources(root: Path) -> Iterator[Path]:
    if root.is_file():
        if root.suffix not in (".py", ".pyi", ".ipynb"):
            raise InputError(f"{root} is no Python source; give a .py file or a folder")
        yield root
    elif root.is_dir():
        for folder, folders, names in os.walk(root):
            if "pyvenv.cfg" in names:
                folders.clear()
                continue
            folders[:] = sorted(f for f in folders if f not in _NOT_OURS and f[0] != ".")
            for name in sorted(names):
                file = Path(folder, name)
                if file.suffix in (".py", ".pyi", ".ipynb") and file.is_file():
                    yield file
    else:
        raise InputError(f"there is no file or folder {root}")


def _write(file: Path, source: bytes) -> None:
    """Replace a file's content; what a link points to is written, not the link."""
    target = file.resolve()
    mode = target.stat().st_mode & 0o777
    with replacing(target) as temporary:
        temporary.write_bytes(source)
    target.chmod(mode)
