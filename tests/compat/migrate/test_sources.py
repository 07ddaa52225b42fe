from __future__ import annotations

import os
import re
import stat
from io import FileIO
from pathlib import Path

import pytest

from octavo.compat.migrate import migrate
from octavo.errors import InputError
from octavo.model.files import atomic

OLD = "from torch.quantization import prepare\n"
NEW = "from octavo.compat.quantization import prepare\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in {
        "a.py": OLD,
        "sub/b.py": OLD,
        "sub/other.py": "import os\n",
        "sub/bad.py": "import torch.quantization\nx = (\n",
        "n.ipynb": '{"cells": ["import torch.quantization"]}',
        "plain.ipynb": "{}",
        ".hidden/c.py": OLD,
        "env/pyvenv.cfg": "",
        "env/c.py": OLD,
        "__pycache__/c.py": OLD,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_folder_is_shown_and_left_as_it_is(tree: Path) -> None:
    found = migrate(tree)
    assert found.read == 4
    assert not found.complete
    assert [Path(f.path).name for f in found.files] == ["a.py", "n.ipynb", "b.py", "bad.py"]
    assert [f.changed_lines for f in found.files] == [1, 0, 1, 0]
    assert f"-{OLD}+{NEW}" in found.diff
    assert (tree / "a.py").read_text() == OLD
    text = str(found)
    assert "n.ipynb:0: notebook: notebooks are not read" in text
    assert re.search(r"bad.py:\d: syntax error", text)
    assert "4 files read, 2 to change (2 lines), 2 places that cannot be moved" in text


def test_a_folder_is_written(tree: Path) -> None:
    script = tree / "a.py"
    script.chmod(0o755)
    (tree / "sub" / "link.py").symlink_to(script)
    before = (tree / "sub" / "other.py").stat().st_mtime_ns
    assert migrate(tree, write=True).written
    assert script.read_text() == (tree / "sub" / "b.py").read_text() == NEW
    assert stat.S_IMODE(script.stat().st_mode) == 0o755
    assert (tree / "sub" / "link.py").is_symlink()
    assert (tree / ".hidden" / "c.py").read_text() == (tree / "env" / "c.py").read_text() == OLD
    assert (tree / "sub" / "other.py").stat().st_mtime_ns == before
    assert not any(f.changed for f in migrate(tree).files)


def test_notes_after_writing_have_the_new_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("import torch\ntorch.quantization.prepare(torch.ops.quantized.add)\n")
    (found,) = migrate(file, write=True).files
    assert [n.line for n in found.kept] == [3]
    assert "quantization.prepare" in file.read_text().splitlines()[found.kept[0].line - 1]


def test_the_diff_of_a_file_without_a_last_line_end(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(OLD.strip())
    assert migrate(tmp_path).diff.count("\\ No newline at end of file\n") == 2


@pytest.mark.parametrize("name", ["missing", "x.txt"])
def test_what_is_no_source(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.txt").touch()
    with pytest.raises(InputError, match=name):
        migrate(tmp_path / name)


def test_one_file_that_nests_too_deep_does_not_stop_the_others(tmp_path: Path) -> None:
    chain = OLD + "if a: pass\n" + "elif b: pass\n" * 400
    for name, text in {"a.py": OLD, "b.py": chain, "c.py": OLD}.items():
        (tmp_path / name).write_text(text)
    found = migrate(tmp_path, write=True)
    assert not found.complete
    assert "b.py:0: cannot be read: " in str(found)
    assert (tmp_path / "a.py").read_text() == (tmp_path / "c.py").read_text() == NEW
    assert (tmp_path / "b.py").read_text() == chain


def test_only_the_content_of_a_file_is_changed(tmp_path: Path) -> None:
    file, other = tmp_path / "a.py", tmp_path / "b.py"
    file.write_text(OLD)
    os.link(file, other)
    (tmp_path / "link.py").symlink_to(file)
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 1234, 4321)
    attributes = True
    try:
        os.setxattr(file, "user.origin", b"here")
    except (OSError, AttributeError):
        attributes = False
    before = file.stat()
    found = migrate(tmp_path, write=True)
    assert found.read == len(found.files) == 1  # by whatever name
    now = file.stat()
    for name in ("st_ino", "st_mode", "st_uid", "st_gid", "st_nlink"):
        assert getattr(now, name) == getattr(before, name), name
    assert file.read_text() == other.read_text() == NEW
    assert (tmp_path / "link.py").is_symlink()
    assert not attributes or os.getxattr(file, "user.origin") == b"here"


def test_a_link_out_of_the_folder_is_followed(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside.py", tmp_path / "src"
    outside.write_text(OLD)
    folder.mkdir()
    (folder / "link.py").symlink_to(outside)
    (folder / "broken.py").symlink_to(tmp_path / "nowhere.py")
    (folder / "round.py").symlink_to(folder / "round.py")
    assert migrate(folder, write=True).complete
    assert outside.read_text() == NEW
    assert (folder / "link.py").is_symlink()


def test_a_read_only_file_is_listed_and_left(tmp_path: Path) -> None:
    file, other = tmp_path / "a.py", tmp_path / "b.py"
    for path in (file, other):
        path.write_text(OLD)
    file.chmod(0o444)
    found = migrate(tmp_path, write=True)
    assert not found.complete
    assert "a.py:0: not changed: cannot write" in str(found)
    assert "1 changed (1 lines)" in str(found)
    assert (file.read_text(), other.read_text()) == (OLD, NEW)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    for name in ("a.py", "b.py", "c.py"):
        (tmp_path / name).write_text(OLD)
    fill = atomic._fill

    def failing(file: FileIO, content: bytes) -> None:
        if Path(str(file.name)).name == "b.py" and content == NEW.encode():
            file.seek(0)
            file.write(content[:20])
            raise error
        fill(file, content)

    monkeypatch.setattr(atomic, "_fill", failing)
    found = migrate(tmp_path, write=True)
    texts = [(tmp_path / name).read_text() for name in ("a.py", "b.py", "c.py")]
    stopped = isinstance(error, KeyboardInterrupt)
    assert texts == [NEW, OLD, OLD if stopped else NEW]
    assert [bool(file.kept) for file in found.files] == [False, True, stopped]
    assert ("interrupted" if stopped else "No space left") in str(found)


def test_files_and_folders_that_cannot_be_read_are_listed(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acted out: the superuser may read everything."""
    read, scan = Path.read_bytes, os.scandir

    def read_bytes(path: Path) -> bytes:
        if path.name == "a.py":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    def scandir(path: str) -> object:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(os, "scandir", scandir)
    text = str(migrate(tree))
    assert re.search(r"a\.py:0: cannot be read: Permission denied", text)
    assert re.search(r"sub:0: cannot be read: Permission denied", text)
