from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from octavo.cli import app


def migrate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["migrate", *map(str, arguments)])


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text("import torch\ntorch.quantization.prepare(m)\n")
    return path


def test_a_diff_then_the_change_then_nothing(script: Path) -> None:
    shown = migrate(script)
    assert shown.exit_code == 0
    assert "\n+import octavo.compat.quantization\n" in shown.stdout
    assert "train.py:2: torch.quantization.prepare: octavo.quantize(" in shown.stdout
    assert "1 to change (2 lines)" in shown.stdout
    assert "octavo" not in script.read_text()

    assert migrate(script, "--write").exit_code == 0
    assert script.read_text().endswith("octavo.compat.quantization.prepare(m)\n")
    assert "0 to change" in migrate(script).stdout


def test_exit_code_1_where_something_cannot_be_moved(script: Path) -> None:
    script.write_text("import torch\ntorch.ops.quantized.add(a, b)\n")
    shown = migrate(script)
    assert shown.exit_code == 1
    assert "train.py:2: torch.ops.quantized.add: " in shown.stdout


def test_json(script: Path) -> None:
    found = json.loads(migrate(script, "--json").stdout)
    assert found["complete"]
    assert found["files"][0]["changed_lines"] == 2
    assert [r["line"] for r in found["files"][0]["remarks"]] == [2]


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    shown = migrate(tmp_path / "nowhere")
    assert shown.exit_code == 1
    assert "there is no file or folder" in shown.stderr.replace("\n", " ")
