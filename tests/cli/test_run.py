from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import octavo_command

import octavo
from octavo.cli import recipe
from octavo.errors import InputError

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="TOML is read from 3.11 on")

MODELS = """
import torch
from torch import nn
def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
"""
JOB = """
# A whole job.
[quantize]
model = "my_run_models:build"
calibration = "x.npz"
output = "m.octavo"
batch-size = 8
batches = 2

[verify]
data = "x.npz"
runtimes = "torch"

[compare]
data = "x.npz"
rounds = 2

[[export]]
out = "m.onnx"

[[export]]
out = "openvino.onnx"
runtime = "openvino"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and data, which is not the current one."""
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "my_run_models.py").write_text(MODELS)
    np.savez(tmp_path / "job" / "x.npz", x=np.random.rand(20, 6).astype("float32"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_run_models", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "job"


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_a_job_is_done_in_the_folder_of_its_recipe(folder: Path) -> None:
    answer = octavo_command("run", written(folder, JOB))
    assert answer.code == 0, answer.err
    assert octavo.load(folder / "m.octavo")(torch.rand(3, 6)).shape == (3, 3)
    assert (folder / "m.onnx").is_file()
    assert (folder / "openvino.onnx").is_file()
    steps = [line for line in answer.out.splitlines() if line.startswith("[")]
    assert [line.split()[2] for line in steps] == [
        *("quantize", "verify", "compare", "export", "export")
    ]
    assert "--batch-size=8" in steps[0]
    assert steps[1].endswith("-- m.octavo")
    assert steps[2].endswith("-- my_run_models:build m.octavo")


def test_results_as_json(folder: Path) -> None:
    answer = octavo_command("run", written(folder, JOB.split("[compare]")[0]), "--json")
    found = json.loads(answer.out)
    assert list(found) == ["1 quantize", "2 verify"]
    assert found["1 quantize"]["provenance"]["calibration_batches"] == 2
    assert found["2 verify"]["passed"] is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("# nothing\n", "holds no step"),
        ("[quantize\n", r"cannot read the recipe .*line 1"),
        ("[quantise]\n", r"line 1, \[quantise\] is no step of a recipe; did you mean \[quantize\]"),
        ("\nquantize = 3\n", r"line 2, \[quantize\] is no step"),
        ("[demo]\n", r"\[demo\] is no step of a recipe; one of quantize, search"),
    ],
)
def test_what_is_no_recipe_is_told(folder: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe.read(written(folder, text))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "batches = 2",
            "batchs = 2",
            "line 8: octavo quantize has no 'batchs'; did you mean 'batches'?",
        ),
        ("batches = 2", "batches = [[2]]", "line 8: batches is [2]; give a text or a number"),
        ("batches = 2", 'batches = "two"', "line 3, [quantize]: "),
        ("batches = 2", "json = true", "line 8: octavo quantize has no 'json'"),
        ('calibration = "x.npz"', 'calibration = "y.npz"', "line 3, [quantize]: cannot read y.npz"),
        (
            "rounds = 2",
            "round = 2",
            "line 16: octavo compare has no 'round'; did you mean 'rounds'?",
        ),
    ],
)
def test_a_wrong_key_is_told_with_its_line(folder: Path, old: str, new: str, message: str) -> None:
    answer = octavo_command("run", written(folder, JOB.replace(old, new)))
    assert answer.code == 1
    assert message in answer.err
    assert "recipe.toml" in answer.err


def test_a_step_that_fails_ends_the_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = JOB.replace('runtimes = "torch"', 'runtimes = "nowhere"')
    answer = octavo_command("run", written(folder, text), "--json")
    assert answer.code == 1
    assert not (folder / "m.onnx").exists()


def test_flags_and_underscores(folder: Path) -> None:
    (step,) = recipe.read(written(folder, "[compare]\ncold_start = true\nmarkdown = false\n"))
    import typer

    from octavo.cli import app

    parameters = typer.main.get_command(app).commands["compare"].params
    words = step.words(parameters, {"model": "a:b", "files": "m.octavo", "weights": "w.pth"})
    assert words == ["--weights=w.pth", "--cold-start", "--", "a:b", "m.octavo"]
    assert step.lines["cold-start"] == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    answer = octavo_command("--show-completion", shell)
    assert "_OCTAVO_COMPLETE" in answer.out
