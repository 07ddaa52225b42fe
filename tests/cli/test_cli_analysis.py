"""The commands that analyse, and folders of images as their data."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import octavo_command

import octavo
from octavo.searching import recipe

pytestmark = pytest.mark.usefixtures("here")

MODELS = """
import torch
from torch import nn
from torch.nn import functional
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(144, 3)
    def forward(self, x):
        return self.fc(functional.relu(self.conv(x)).flatten(1))
def build():
    torch.manual_seed(0)
    return Net()
def mean_score(outputs, labels):
    return float(outputs.mean())
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, labelled data as a file, and an artifact made by the command."""
    folder = tmp_path_factory.mktemp("analysis")
    (folder / "my_analysed_models.py").write_text(MODELS)
    torch.manual_seed(1)
    np.savez(folder / "data.npz", x=torch.rand(20, 1, 8, 8).numpy(), y=np.arange(20) % 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        answer = octavo_command(
            *("quantize", "my_analysed_models:build", "--calibration", "data.npz"),
            *("-o", "m.octavo", "--target", "x86-avx2"),
        )
    assert answer.code == 0, answer.err
    return folder


DEBUG = ("debug", "my_analysed_models:build", "m.octavo", "--data")
SENSITIVITY = ("sensitivity", "my_analysed_models:build", "--calibration", "data.npz", "--data")


def test_debug_prints_the_table_the_worst_and_what_to_do() -> None:
    answer = octavo_command(*DEBUG, "data.npz")
    assert (answer.code, answer.err) == (0, "")
    assert "Rounding errors of 6 tensors, 20 samples" in answer.out
    advice = next(line for line in answer.out.splitlines() if line.startswith("Worst"))
    assert "relu (" in advice
    # No rule keeps an input in float; flatten rounds nothing.
    assert " x (" not in advice
    assert "flatten (" not in advice


def test_what_debug_proposes_keeps_the_layers_in_float() -> None:
    out = octavo_command(*DEBUG, "data.npz").out
    found: dict[str, octavo.QConfigMapping] = {}
    code = out[out.index("qconfig = (") :]
    exec("import octavo\n" + code[: code.index("\nq = ")], found)  # noqa: S102  it is ours
    rules = [rule for rule in found["qconfig"].rules if rule.pattern != "fc"]
    assert [rule.pattern for rule in rules] == ["conv", "relu"]
    from my_analysed_models import build  # type: ignore[import-not-found]

    graph = octavo.capture(build(), torch.rand(2, 1, 8, 8))
    decided = octavo.plan(graph, octavo.QConfigMapping(rules), "x86-avx2")
    runs = {name: decided.tensors[name].runs for name in ("conv", "relu", "fc")}
    assert runs == {"conv": "float", "relu": "float", "fc": "int8"}


def test_report_writes_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    answer = octavo_command(
        *("report", "my_analysed_models:build", "m.octavo", "--data", "data.npz", "-o", str(page)),
        *("--calibration", "data.npz", "--title", "Mine & yours", "--json"),
    )
    assert (answer.code, answer.err) == (0, "")
    data = json.loads(answer.out)
    assert data["file"] == str(page)
    assert data["sensitivity"]["layers"][0]["alone_db"] is not None
    text = page.read_text(encoding="utf-8")
    assert "<h1>Mine &amp; yours</h1>" in text
    assert '<section id="sensitivity"' in text
    assert '<section id="search"' not in text


def test_report_with_something_else_for_a_search(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"best": null}')
    answer = octavo_command(
        *("report", "my_analysed_models:build", "m.octavo", "--data", "data.npz"),
        *("--search", str(tmp_path / "s.json"), "-o", str(tmp_path / "page.html")),
    )
    assert answer.code == 1
    assert "is not the result of a search" in answer.err
    assert not (tmp_path / "page.html").exists()


def test_debug_json_is_that_of_the_function() -> None:
    answer = octavo_command(*DEBUG, "data.npz", "--json", "--batch-size", "8", "--limit", "2")
    data = json.loads(answer.out)
    assert (answer.code, answer.err, data["samples"]) == (0, "", 16)
    from my_analysed_models import build

    x = torch.from_numpy(np.load("data.npz")["x"])
    q = octavo.load("m.octavo", runtime="reference")
    expected = octavo.layer_errors(build(), q, [x[:8], x[8:16]]).to_dict()
    assert data == json.loads(json.dumps(expected))


def test_sensitivity() -> None:
    table = octavo_command(*SENSITIVITY, "data.npz")
    assert (table.code, table.err) == (0, "")
    assert "Sensitivity of 2 layers, 20 samples; top1" in table.out
    data = json.loads(octavo_command(*SENSITIVITY, "data.npz", "--json").out)
    assert {layer["layer"] for layer in data["layers"]} == {"conv", "fc"}
    decibels = [layer["alone_db"] for layer in data["layers"]]
    assert decibels == sorted(decibels)
    assert data["quantized_db"] < decibels[0]


def test_sensitivity_estimated_with_a_metric_and_a_mode() -> None:
    answer = octavo_command(
        *(*SENSITIVITY, "data.npz", "--json", "--estimate", "--mode", "weight_only"),
        *("--metric", "my_analysed_models:mean_score", "--target", "x86"),
    )
    data = json.loads(answer.out)
    assert (answer.code, answer.err, data["metric"]) == (0, "", "mean_score")
    (layer,) = data["layers"]  # by the weights alone, convolutions stay float
    assert (layer["layer"], layer["alone_db"]) == ("fc", None)
    assert layer["estimate_db"] > 30


def test_an_interrupted_search_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: object, **how: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["octavo.searching.search"], "search", interrupted)
    data = (
        *("--calibration", "data.npz", "--data", "data.npz"),
        "--max-drop",
        "1",
        "--out",
        "stopped",
    )
    answer = octavo_command("search", "my_analysed_models:build", *data)
    assert answer.code == 130
    assert "the same command goes on; what was tried is kept in stopped" in answer.err


@pytest.mark.sweep
def test_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "layer_times", lambda q, tensors: ())
    search = (
        *("search", "my_analysed_models:build", "--calibration", "data.npz"),
        *("--data", "data.npz", "--target", "x86-avx2"),
    )
    found = octavo_command(*search, "--max-drop", "100", "--out", "found", "--json")
    data = json.loads(found.out)
    assert (found.code, found.err, data["complete"]) == (0, "", True)
    assert [trial["name"] for trial in data["trials"]] == ["static", "dynamic"]
    assert octavo.load("found/best.octavo").provenance["candidate"] == data["best"]["name"]
    again = octavo_command(*search, "--max-drop", "100", "--out", "found")
    assert "taken" in again.out
    refused = octavo_command(*search, "--max-drop", "1", "--out", "found")
    assert (refused.code, refused.out) == (1, "")
    assert "checkpoint of another search" in refused.err
    nothing = octavo_command(*search, "--max-drop", "-200", "--out", "none")
    assert nothing.code == 1
    assert "No candidate loses at most -200" in nothing.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*DEBUG, "absent.npz"), "cannot read absent.npz"),
        ((*SENSITIVITY, "absent.npz"), "cannot read absent.npz"),
        ((*SENSITIVITY, "data.npz", "--metric", "bleu"), "top5"),
        ((*DEBUG, "data.npz", "--mean", "0.5,a"), "--mean is '0.5,a'; give numbers"),
        ((*DEBUG, "data.npz", "--mean", "1,1"), "mean has 2 numbers (1.0, 1.0)"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_1(
    arguments: tuple[str, ...], message: str
) -> None:
    answer = octavo_command(*arguments)
    assert (answer.code, answer.out, answer.err.count("\n")) == (1, "", 1)
    assert message in answer.err


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three classes of two gray images, 10 x 9 pixels."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("pictures")
    chance = np.random.default_rng(0)
    for name in ("ape", "bee", "cow"):
        (folder / name).mkdir()
        for index in range(2):
            pixels = chance.integers(0, 256, (10, 9), dtype=np.uint8)
            image.fromarray(pixels).save(folder / name / f"{index}.png")
    return str(folder)


IMAGES = ("--image-size", "8", "--gray")


def test_a_folder_of_images_is_data_of_every_command(pictures: str, tmp_path: Path) -> None:
    file, normal = str(tmp_path / "m.octavo"), ("--mean", "0.5", "--std", "0.25")
    model, data = "my_analysed_models:build", ("--data", pictures, *IMAGES, *normal)
    calibration = ("--calibration", pictures)
    for arguments in (
        ("quantize", model, *calibration, *IMAGES, *normal, "-o", file),
        ("compare", model, file, *data, "--rounds", "1"),
        ("debug", model, file, *data),
        ("sensitivity", model, *calibration, *data),
        ("verify", file, *data, "--runtimes", "torch"),
    ):
        answer = octavo_command(*arguments)
        assert answer.code == 0, answer.err
    assert "6 samples" in octavo_command("debug", model, file, *data).out


def test_a_model_that_takes_pixels_gets_them_from_a_folder(pictures: str, tmp_path: Path) -> None:
    file, model = str(tmp_path / "m.octavo"), "my_analysed_models:build"
    quantize = ("quantize", model, "--calibration", pictures, *IMAGES, "-o", file)
    refused = octavo_command(*quantize, "--input-mean", "0.5", "--mean", "0.5")
    assert "--mean and --std are for models that take floats" in refused.err
    assert octavo_command(*quantize, "--input-mean", "0.5", "--input-std", "0.25").code == 0
    data = ("--data", pictures, *IMAGES, "--json")
    compared = json.loads(octavo_command("compare", model, file, *data, "--rounds", "1").out)
    assert compared["int8"]["sqnr_db"] > 25
    errors = json.loads(octavo_command("debug", model, file, *data).out)
    assert errors["samples"] == 6


@pytest.mark.parametrize("command", ["debug", "sensitivity"])
def test_help_has_an_example(command: str) -> None:
    answer = octavo_command(command, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert f"octavo {command} mymodels:build" in " ".join(answer.out.split())
