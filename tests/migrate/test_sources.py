from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from octavo.errors import InputError
from octavo.migrate import migrate

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
