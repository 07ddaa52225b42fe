"""`Migration`: what changes in each file, what has a better call, and what cannot be moved."""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Note:
    """Something said about a line.

    Attributes:
        line: its number, from 1; 0 is the file as a whole.
        name: what it is about.
        text: what to do.
    """

    line: int
    name: str
    text: str


@dataclass(frozen=True)
class FileMigration:
    """What becomes of one file.

    Attributes:
        path: as it was given, or found under the folder that was given.
        before, after: its text.
        remarks: names that were moved, or need not be, and have a better native call.
        kept: what cannot be moved.
    """

    path: str
    before: str
    after: str
    remarks: tuple[Note, ...] = ()
    kept: tuple[Note, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether a line is to change."""
        return self.before != self.after

    @cached_property
    def diff(self) -> str:
        """The change as a unified diff; empty without one."""
        lines = difflib.unified_diff(
            _lines_of(self.before),
            _lines_of(self.after),
            f"a/{self.path.lstrip('/')}",
            f"b/{self.path.lstrip('/')}",
        )
        ends = ("\n", "\r")
        return "".join(line if line.endswith(ends) else f"{line}{_NO_NEWLINE}" for line in lines)

    @property
    def changed_lines(self) -> int:
        """How many lines are new or other than they were."""
        lines = _lines_of(self.diff)[2:]
        return sum(line.startswith("+") for line in lines)


def _lines_of(text: str) -> list[str]:
    """With their ends, where Python ends a line; `str.splitlines` ends more."""
    return io.StringIO(text, newline="").readlines()


_NO_NEWLINE = "\n\\ No newline at end of file\n"


@dataclass(frozen=True)
class Migration:
    """What `migrate` found.

    Attributes:
        files: those with a change or a note, by path.
        read: how many Python files were looked at.
        written: whether the changes were written.
    """

    files: tuple[FileMigration, ...]
    read: int
    written: bool = False

    @property
    def complete(self) -> bool:
        """Whether everything could be moved."""
        return not any(file.kept for file in self.files)

    @property
    def diff(self) -> str:
        """All changes as one unified diff."""
        return "".join(file.diff for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "read": self.read,
            "written": self.written,
            "complete": self.complete,
            "files": [
                {
                    "path": file.path,
                    "changed_lines": file.changed_lines,
                    "diff": file.diff,
                    "remarks": [asdict(note) for note in file.remarks],
                    "kept": [asdict(note) for note in file.kept],
                }
                for file in self.files
            ],
        }

    def __str__(self) -> str:
        """Remarks, what cannot be moved, and the sums; without the diff."""
        parts = [
            part
            for title, kind in (("Better native calls", "remarks"), ("Cannot be moved", "kept"))
            if (part := "\n".join(self._section(title, kind)))
        ]
        return "\n\n".join([*parts, self._sums()])

    def _section(self, title: str, kind: str) -> Iterator[str]:
        notes = [(file.path, note) for file in self.files for note in getattr(file, kind)]
        if notes:
            yield f"{title}:"
        for path, note in notes:
            yield f"{path}:{note.line}: {note.name}: {note.text}"

    def _sums(self) -> str:
        changed = [file for file in self.files if file.changed]
        lines = sum(file.changed_lines for file in changed)
        kept = sum(len(file.kept) for file in self.files)
        did = "changed" if self.written else "to change"
        return (
            f"{self.read} file{'s' * (self.read != 1)} read, {len(changed)} {did} ({lines} lines), "
            f"{kept} places that cannot be moved"
        )
