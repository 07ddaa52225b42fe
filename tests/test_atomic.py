from __future__ import annotations

import os
from pathlib import Path

import pytest

from octavo.atomic import replacing, require_writable
from octavo.errors import ArtifactError


def test_the_file_is_there_at_the_end_and_only_then(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "report.json"
    with replacing(path) as file:
        file.write_text("{}")
        assert not path.exists()
    assert path.read_text() == "{}"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_was_there_before_stays_when_writing_is_cut_short(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as file:
            file.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "file") as file:
        file.touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ArtifactError, match=r"cannot write .*report\.json"),
        replacing(tmp_path / "file" / "report.json"),
    ):
        pass
    with pytest.raises(ArtifactError, match=r"cannot write to .*file"):
        require_writable(tmp_path / "file" / "folder")


def test_require_writable_makes_the_folder_and_leaves_it_empty(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []
