from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from octavo.errors import ArtifactError
from octavo.model.files.atomic import filling, overwrite, replacing, require_file, require_writable


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


@pytest.mark.parametrize("writing", [replacing, lambda path: filling(path.parent, "model")])
def test_of_folders_that_are_made_nothing_is_left(
    tmp_path: Path, writing: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="refused"), writing(tmp_path / "a" / "b" / "c" / "model"):
        raise ValueError("refused")
    assert os.listdir(tmp_path / "a") == []


def test_require_writable_makes_nothing(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    require_file(tmp_path / "c" / "file")
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_there_keeps_its_permissions_owner_and_links_to_it(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_text("old")
    link.symlink_to(path)
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    before = path.stat()
    with replacing(link) as file:
        file.write_text("new")
    now = path.stat()
    assert link.is_symlink()
    assert path.read_text() == "new"
    for name in ("st_mode", "st_uid", "st_gid"):
        assert getattr(now, name) == getattr(before, name), name


def test_a_writer_that_makes_files_of_its_own_does_not_choose_their_permissions(
    tmp_path: Path,
) -> None:
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "file") as file:
        file.unlink()
        file.touch(0o600)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_is_no_file_or_protected_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o444)
    for name, why in (("pipe", "a pipe"), ("folder", "a folder"), ("file", "read-only")):
        with pytest.raises(ArtifactError, match=why), replacing(tmp_path / name):
            pytest.fail("it is known before anything is written")
        with pytest.raises(ArtifactError, match=why):
            require_file(tmp_path / name)
    with pytest.raises(ArtifactError, match="a device"):
        require_file(os.devnull)
    assert (tmp_path / "file").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 3


def test_the_umask_is_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read by setting it, for all threads: two that do so at once may leave it at 0."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
    with replacing(tmp_path / "file") as file:
        file.write_text("")


def test_folders_in_a_folder_can_be_entered(tmp_path: Path) -> None:
    """Tokenizers with several chat templates have one."""
    with filling(tmp_path / "model", last="config.json") as made:
        (made / "templates").mkdir()
        (made / "templates" / "a.jinja").write_text("a")
        (made / "config.json").write_text("{}")
    inside = tmp_path / "model" / "templates"
    assert inside.stat().st_mode & 0o100
    assert (inside / "a.jinja").read_text() == "a"


def test_threads_that_write_the_same_file_leave_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write(number: int) -> None:
        for _ in range(20):
            with replacing(path) as file:
                file.write_text(str(number) * 10_000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    text = path.read_text()
    assert text == text[0] * 10_000
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    program = (
        "import os, sys; from octavo.model.files.atomic import replacing\n"
        "with replacing(sys.argv[1]) as file:\n"
        "    file.write_text('half'); print('there', flush=True); sys.stdin.read()\n"
    )
    path = tmp_path / "file"
    path.write_text("old")
    command = [sys.executable, "-c", program, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as other:
        assert one.stdout.readline() == other.stdout.readline() == b"there\n"
        assert len(list(tmp_path.iterdir())) == 3
        other.kill()
        other.wait()
        with replacing(path) as file:
            file.write_text("new")
        assert path.read_text() == "new"
        assert len(list(tmp_path.iterdir())) == 2  # that of the one which is still writing
        one.stdin.close()
        one.wait()
    assert path.read_text() == "half"
    assert os.listdir(tmp_path) == ["file"]


def test_overwrite_changes_the_content_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a long content")
    before = path.stat()
    overwrite(path, b"a long content", b"short")
    assert path.read_bytes() == b"short"
    assert path.stat().st_ino == before.st_ino
    with pytest.raises(ArtifactError, match="has changed since it was read"):
        overwrite(path, b"a long content", b"other")
    path.chmod(0o444)
    with pytest.raises(ArtifactError, match="read-only"):
        overwrite(path, b"short", b"other")
    assert path.read_bytes() == b"short"
