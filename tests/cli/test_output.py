"""What files, paths and models say, on its way to a terminal; exit codes of what ends early."""

from __future__ import annotations

import inspect
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import hostile_files
import pytest
import torch
from commands import octavo_command
from safetensors import safe_open
from torch import nn

import octavo
from octavo.cli import app
from octavo.measuring.comparison_table import Comparison, Row

ESCAPES = "\x1b]0;owned\x07"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.m = nn.ModuleDict({"user[id]": nn.Linear(4, 4), "[/x]": nn.Linear(4, 4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.m["[/x]"](self.m["user[id]"](x))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose names look like markup, and one whose names are commands to a terminal."""
    folder = tmp_path_factory.mktemp("out") / "[/x]"
    q = octavo.quantize(Net().eval(), torch.randn(2, 4), mode="dynamic", progress=False)
    q.save(folder / "m[v1].octavo")
    with safe_open(folder / "m[v1].octavo", "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata["provenance"] = '{"x": NaN, "y": "\\u001b]0;owned\\u0007"}'
    metadata["plan"] = metadata["plan"].replace("m.user[id]", "\\u001b]0;owned\\u0007x")
    hostile_files.write(folder / "hostile.octavo", metadata, tensors)
    return folder


def test_names_are_no_markup(folder: Path) -> None:
    code, out, err = octavo_command("inspect", folder / "m[v1].octavo", "--plan")
    assert (code, err) == (0, "")
    assert f"{folder / 'm[v1].octavo'}: 0.0" in out.replace("\n", "")
    assert "m.user[id].weight" in out
    assert "m.[/x].weight" in out


def test_a_path_is_no_markup(folder: Path) -> None:
    out_path = folder / "a[b]" / "[/x].onnx"
    code, out, err = octavo_command("export", folder / "m[v1].octavo", "-o", out_path)
    assert (code, err) == (0, "")
    assert f"{out_path}: 0.0" in out.replace("\n", "")
    assert out_path.is_file()


def test_escape_sequences_are_spelled_out(folder: Path) -> None:
    for arguments in (("inspect", folder / "hostile.octavo", "--plan"), ("inspect", ESCAPES)):
        _, out, err = octavo_command(*arguments)
        text = out + err
        assert "\x1b" not in text
        assert r"\x1b]0;owned\x07" in text.replace("\n", "")


@pytest.mark.parametrize(
    "arguments", [(f"bake{ESCAPES}",), ("inspect", "a", ESCAPES), (f"--{ESCAPES}",)]
)
def test_a_wrong_command_line_too(arguments: tuple[str, ...]) -> None:
    code, out, err = octavo_command(*arguments)
    assert (code, out) == (2, "")
    assert "\x1b" not in err
    assert r"\x1b]0;owned\x07" in err


def test_every_command_has_json() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        assert "as_json" in inspect.signature(command.callback).parameters, command.callback


def test_export_in_json(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    code, text, _ = octavo_command("export", folder / "m[v1].octavo", "-o", out, "--json")
    assert (code, json.loads(text)) == (0, {"file": str(out), "size_bytes": out.stat().st_size})


def test_a_metric_that_is_no_number_is_null() -> None:
    result = Comparison((Row("fp32", "eager", 100, 1.0, math.nan),), "mine", 10, 1, 2, 5)
    assert json.loads(result.to_json())["fp32"]["mine"] is None


def test_json_has_no_nan(folder: Path) -> None:
    code, out, err = octavo_command("inspect", folder / "hostile.octavo", "--json")
    if code == 0:  # a reader that is strict may refuse the file
        data = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert data["provenance"]["x"] is None
    else:
        assert err.startswith("octavo: ")


def test_migrate_shows_what_stands_in_a_source(tmp_path: Path) -> None:
    source = f"from torch.quantization import prepare  # {ESCAPES}\r\nx = 1\r\n"
    file = tmp_path / f"a[b]{ESCAPES}.py"
    file.write_bytes(source.encode())
    code, out, _ = octavo_command("migrate", file)
    assert code == 0
    assert "\x1b" not in out
    assert r"+from octavo.compat.quantization import prepare  # \x1b]0;owned\x07" in out
    assert r"a[b]\x1b]0;owned\x07.py" in out
    code, out, _ = octavo_command("migrate", file, "--json")
    assert ESCAPES in json.loads(out)["files"][0]["diff"]


def test_names_of_contenders_in_every_form() -> None:
    rows = (Row("fp32", "eager", 100, 1.0), Row(f"[/x]|{ESCAPES}", "torch", 50, 0.5))
    result = Comparison(rows, "top1", 10, 1, 2, 5)
    for text in (str(result), result.to_markdown(), result._repr_html_()):
        assert "\x1b" not in text
        assert "[/x]" in text
    assert r"[/x]\|" in result.to_markdown()


def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "octavo", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        **options,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
@pytest.mark.parametrize("options", [("--plan",), ("--json",)])
def test_a_full_disk_is_one_line(folder: Path, options: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        found = run("inspect", folder / "m[v1].octavo", *options, stdout=full)
    assert found.returncode == 1
    assert found.stderr == "octavo: No space left on device\n"


def test_a_reader_that_leaves_ends_it_without_a_word(folder: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    found = run("inspect", folder / "m[v1].octavo", "--plan", stdout=write)
    os.close(write)
    assert found.returncode == 1
    assert found.stderr == ""


def test_a_name_that_is_no_text(folder: Path, tmp_path: Path) -> None:
    """Bytes in a file's name that are no UTF-8, and a terminal that knows ASCII alone."""
    path = os.fsencode(tmp_path) + b"/m\xff.octavo"
    content = (folder / "m[v1].octavo").read_bytes()
    with open(path, "wb") as file:
        file.write(content)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    found = run("inspect", os.fsdecode(path), "--plan", stdout=subprocess.PIPE, env=environment)
    assert (found.returncode, found.stderr) == (0, "")
    assert r"m\udcff.octavo" in found.stdout.replace("\n", "")
    source = tmp_path / "a.py"
    source.write_text("from torch.quantization import prepare  # é\n", encoding="utf-8")
    found = run("migrate", source, stdout=subprocess.PIPE, env=environment)
    assert (found.returncode, found.stderr) == (0, "")
    assert r"prepare  # \xe9" in found.stdout
