"""A file that somebody names: what is wrong with it is said before a reader takes it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from octavo.model.files.source_file import check_file, reason


def test_a_file_is_taken(tmp_path: Path) -> None:
    (tmp_path / "m.octavo").write_bytes(b"1")
    check_file(tmp_path / "m.octavo")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path, "it is a folder"),
        (tmp_path / "none", "there is no such file"),
        (tmp_path / "empty" / "below a file", "there is no such file"),
        (tmp_path / "empty", "it is empty"),
        (tmp_path / "pipe", "it is a pipe or a device, not a file"),
    ):
        with pytest.raises((OSError, ValueError)) as found:
            check_file(path)
        assert reason(found.value) == words


def test_an_error_is_told_on_one_line() -> None:
    assert reason(ValueError("one\n  two")) == "one two"
    assert reason(PermissionError(13, "Permission denied")) == "Permission denied"
    assert reason(KeyError()) == "KeyError"
