"""`migrate`: the Python files of a folder, read, shown and written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from octavo.compat.migrate.result import FileMigration, Migration, Note
from octavo.compat.migrate.rewrite import rewrite, unread
from octavo.errors import ArtifactError, InputError
from octavo.model.files.atomic import overwrite
from octavo.progress import track

# A file without any of these has nothing to move, and need not be parsed.
_WORDS = (b"quantiz", b"torchao", b"torch.ao", b"nn.qat", b"nn.intrinsic", b"tinynn")
_SUFFIXES = (".py", ".pyi", ".ipynb")
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
        write: change the files, once all are read. A file keeps its owner, permissions, links and
            extended attributes. One that is read-only or cannot be written is listed with the
            reason, and the others are changed all the same.
        progress: show a progress bar on a terminal.

    Returns:
        What changes, has a better native call, and cannot be moved. Files that cannot be read are
        among the last.

    Raises:
        InputError: there is no such file or folder, or the file is not Python.
        MissingExtra: libcst is not installed.

    Example:
        >>> found = migrate("src")  # doctest: +SKIP
        >>> print(found.diff)  # doctest: +SKIP
    """
    unseen: list[FileMigration] = []
    sources = list(_sources(Path(path), unseen))
    readable = [_Source.of(file) for file in track(sources, "reading", progress)]
    files = (
        [*unseen, *_written(readable)] if write else [*unseen, *(one.migration for one in readable)]
    )
    read = sum(file.suffix != ".ipynb" for file in sources)
    noted = (file for file in files if file.changed or file.remarks or file.kept)
    return Migration(tuple(noted), read, write)


@dataclass(frozen=True)
class _Source:
    """A file, what it holds, and what becomes of it."""

    file: Path
    old: bytes
    new: bytes
    migration: FileMigration

    @classmethod
    def of(cls, file: Path) -> _Source:
        name = str(file)
        try:
            source = file.read_bytes()
        except OSError as error:
            why = error.strerror or str(error)
            return cls(file, b"", b"", unread(name, 0, "cannot be read", why))
        if not any(word in source for word in _WORDS):
            return cls(file, source, source, FileMigration(name, "", ""))
        if file.suffix == ".ipynb":
            return cls(file, source, source, unread(name, 0, "notebook", _NOTEBOOK))
        migration, new = rewrite(name, source)
        return cls(file, source, new, migration)

    def write(self) -> FileMigration:
        """Change the file; what is said of it then has the new lines."""
        if not self.migration.changed:
            return self.migration
        now, _ = rewrite(self.migration.path, self.new)
        try:
            overwrite(self.file, self.old, self.new)
        except ArtifactError as error:
            return self.unwritten(str(error))
        return replace(self.migration, remarks=now.remarks, kept=now.kept)

    def unwritten(self, why: str) -> FileMigration:
        note = Note(0, "not changed", why)
        before = self.migration.before
        return replace(self.migration, after=before, kept=(note, *self.migration.kept))


def _written(sources: Sequence[_Source]) -> Iterator[FileMigration]:
    """Change one file after the other; stopped with Ctrl-C, the others are listed."""
    stopped = False
    for source in sources:
        try:
            if not stopped:
                yield source.write()
                continue
        except KeyboardInterrupt:
            stopped = True
        changes = source.migration.changed
        yield source.unwritten("interrupted") if changes else source.migration


def _sources(root: Path, unseen: list[FileMigration]) -> Iterator[Path]:
    """Each file once, by whatever links it is found; folders that cannot be read are noted."""
    if root.is_file():
        if root.suffix not in _SUFFIXES:
            raise InputError(f"{root} is not a Python file; give a .py file or a folder")
        yield root
    elif root.is_dir():
        seen = set()
        for file in _files(root, unseen):
            status = file.stat()
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                yield file
    else:
        raise InputError(f"there is no file or folder {root}")


def _files(root: Path, unseen: list[FileMigration]) -> Iterator[Path]:
    def note(error: OSError) -> None:
        why = error.strerror or str(error)
        unseen.append(unread(str(error.filename), 0, "cannot be read", why))

    for folder, folders, names in os.walk(root, onerror=note):
        if "pyvenv.cfg" in names:
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if f not in _NOT_OURS and f[0] != ".")
        for name in sorted(names):
            file = Path(folder, name)
            if file.suffix in _SUFFIXES and file.is_file():
                yield file
