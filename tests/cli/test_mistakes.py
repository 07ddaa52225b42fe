"""Every command with every wrong thing in every place: one line, exit code 1, nothing written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import octavo
from octavo.cli import app

MODELS = """
import torch
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
def build():
    return net
"""

# What stands in the place of `?`, and what is said of it.
_NO_FILE = {
    "absent": "there is no such file",
    "folder": "it is a folder",
    "pipe": "it is a pipe or a device, not a file",
    "endless": "it is a pipe or a device, not a file",
    "round": "symbolic links",
    "text.txt/x": "there is no such file",
    "n" * 300: "File name too long",
}
NO_ARTIFACT = _NO_FILE | {
    "empty": "it is empty",
    "text.txt": "not an Octavo artifact",
    "cut.octavo": "not an Octavo artifact, or is truncated",
    "data.npz": "not an Octavo artifact",
}
NO_DATA = {
    "absent.npz": "there is no such file",
    "empty.npz": "it is empty",
    "pipe.npz": "it is a pipe or a device",
    "text.txt": "of another kind than .npz and .safetensors",
    "folder": "holds no images",
    "cut.octavo": "of another kind than",
    "mistaken:net": "cannot import mistaken",
    "of_mistakes:nets": "did you mean net",
    "of_mistakes:torch": "gives a module, not an iterable",
    "": "neither a file of a known kind",
}
NO_MODEL = {
    "absent.pt2": "there is no such file",
    "empty.pt2": "it is empty",
    "pipe.pt2": "it is a pipe or a device",
    "text.txt": "name: give a .pt2 file of torch.export.save",
    "good.octavo": "name: give a .pt2 file of torch.export.save",
    "mistaken:net": "cannot import mistaken",
    "of_mistakes:nets": "did you mean net",
    "of_mistakes:torch": "is a module, not a model",
    "": "neither a file of a known kind",
}
NO_WEIGHTS = _NO_FILE | {"empty": "it is empty", "text.txt": "nothing in it was run"}
NO_OUTPUT = {
    "folder": "it is a folder",
    "pipe": "it is a device or a pipe",
    "endless": "it is a device or a pipe",
    "text.txt/out": "is a file and not a folder",
    "protected": "it is read-only",
    "n" * 300: "File name too long",
    "": "it is a folder",
}
NO_FOLDER = {
    "text.txt": "is a file and not a folder",
    "text.txt/out": "is a file and not a folder",
    "pipe": "is a file and not a folder",
}
NO_SOURCES = {
    "absent": "no file or folder",
    "text.txt": "is not a Python",
    "pipe": "no file or folder",
}
NO_SEARCH = _NO_FILE | {"empty": "it is empty", "text.txt": "not the result of a search"}

BUILD, DATA = "of_mistakes:build", ("--data", "data.npz")
CALIBRATION = ("--calibration", "data.npz")
SEARCH = ("search", BUILD, *DATA, *CALIBRATION, "--max-drop", "1", "-o")
TABLE = (
    (NO_ARTIFACT, ("inspect", "?")),
    (NO_ARTIFACT, ("inspect", "?", "--json")),
    (NO_ARTIFACT, ("bench", "?")),
    (NO_ARTIFACT, ("verify", "?")),
    (NO_ARTIFACT, ("tune", "?")),
    (NO_ARTIFACT, ("export", "?", "-o", "out")),
    (NO_ARTIFACT, ("compare", BUILD, "?", *DATA)),
    (NO_ARTIFACT, ("debug", BUILD, "?", *DATA)),
    (NO_ARTIFACT, ("report", BUILD, "?", *DATA, "-o", "out")),
    (NO_DATA, ("quantize", BUILD, "--calibration", "?", "-o", "out")),
    (NO_DATA, ("verify", "good.octavo", "--data", "?")),
    (NO_DATA, ("tune", "good.octavo", "--data", "?", "-o", "tuned.octavo")),
    (NO_DATA, ("compare", BUILD, "good.octavo", "--data", "?")),
    (NO_DATA, ("debug", BUILD, "good.octavo", "--data", "?")),
    (NO_DATA, ("report", BUILD, "good.octavo", "--data", "?", "-o", "out")),
    (NO_DATA, ("sensitivity", BUILD, "--data", "?", *CALIBRATION)),
    (NO_DATA, ("sensitivity", BUILD, *DATA, "--calibration", "?")),
    (NO_MODEL, ("quantize", "?", *CALIBRATION, "-o", "out")),
    (NO_MODEL, ("compare", "?", "good.octavo", *DATA)),
    (NO_MODEL, ("debug", "?", "good.octavo", *DATA)),
    (NO_MODEL, ("report", "?", "good.octavo", *DATA, "-o", "out")),
    (NO_MODEL, ("sensitivity", "?", *DATA, *CALIBRATION)),
    (NO_MODEL, ("search", "?", *DATA, *CALIBRATION, "--max-drop", "1", "-o", "out")),
    (NO_WEIGHTS, ("quantize", BUILD, "--weights", "?", *CALIBRATION, "-o", "out")),
    (NO_OUTPUT, ("quantize", BUILD, *CALIBRATION, "-o", "?")),
    (NO_OUTPUT, ("export", "good.octavo", "-o", "?")),
    (NO_OUTPUT, ("tune", "good.octavo", "-o", "?")),
    (NO_OUTPUT, ("report", BUILD, "good.octavo", *DATA, "-o", "?")),
    (NO_FOLDER, (*SEARCH, "?")),
    (NO_FOLDER, ("demo", "--out", "?")),
    (NO_SOURCES, ("migrate", "?")),
    (NO_SEARCH, ("report", BUILD, "good.octavo", *DATA, "--search", "?", "-o", "out")),
)
CASES = [
    ([wrong if part == "?" else part for part in command], said)
    for wrongs, command in TABLE
    for wrong, said in wrongs.items()
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "of_mistakes.py").write_text(MODELS)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    samples = torch.randn(20, 4)
    np.savez(folder / "data.npz", x=samples.numpy(), labels=np.arange(20) % 3)
    octavo.quantize(net, calibration=[samples], progress=False).save(folder / "good.octavo")
    content = (folder / "good.octavo").read_bytes()
    (folder / "cut.octavo").write_bytes(content[: len(content) // 2])
    (folder / "text.txt").write_text("a text\n" * 50)
    (folder / "folder").mkdir()
    (folder / "protected").write_text("of value")
    (folder / "protected").chmod(0o444)
    (folder / "round").symlink_to("round")
    (folder / "endless").symlink_to("/dev/zero")
    for suffix in ("", ".npz", ".pt2"):
        (folder / f"empty{suffix}").touch()
        os.mkfifo(folder / f"pipe{suffix}")
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = sorted(folder.iterdir())
    yield
    written = [path for path in folder.iterdir() if path not in before]
    assert [path.name for path in written] in ([], ["__pycache__"])
    assert (folder / "protected").read_text() == "of value"


@pytest.mark.parametrize(
    ("command", "said"), CASES, ids=[" ".join(part[:20] for part in case[0]) for case in CASES]
)
def test_one_line_says_what_is_wrong(command: list[str], said: str) -> None:
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("octavo: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", [(*SEARCH, ""), ("demo", "--out", ""), ("migrate", "")])
def test_an_empty_path_is_not_the_current_folder(command: tuple[str, ...]) -> None:
    """A variable of the shell that is not set: `octavo migrate "$SOURCES" --write`."""
    result = CliRunner().invoke(app, list(command))
    assert result.exit_code == 2
    assert "it is empty; is a variable of your shell" in " ".join(result.stderr.split())
