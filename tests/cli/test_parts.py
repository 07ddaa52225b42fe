"""The commands on a model that cannot be captured whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import octavo_command

MODEL = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8))
    def forward(self, x):
        y = self.body(x)
        return y if y.sum().abs() < 1e9 else -y
def build():
    return Net()
"""


@pytest.mark.filterwarnings("ignore::octavo.OctavoWarning")
def test_from_quantize_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_parts_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    dice = np.random.default_rng(0)
    np.savez("x.npz", x=dice.normal(size=(32, 6)).astype(np.float32), y=np.arange(32) % 8)
    model = "my_parts_model:build"
    quantize = ("quantize", model, "--calibration", "x.npz", "-o", "q.octavo")
    assert octavo_command(*quantize, "--scope", "model").code == 1
    answer = octavo_command(*quantize, "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["headline"] == "100 % of the multiply-adds in int8"
    shown = octavo_command("inspect", "q.octavo")
    assert "1 quantized part of a Net" in " ".join(shown.out.split())
    assert "body: a region in place of a Sequential" in " ".join(shown.out.split())
    assert json.loads(octavo_command("inspect", "q.octavo", "--json").out)["model"] == "Net"
    assert octavo_command("verify", "q.octavo", "--runtimes", "torch").code == 0
    refused = octavo_command("verify", "q.octavo", "--data", "x.npz")
    assert "needs the model's own code" in " ".join(refused.err.split())
    compared = octavo_command("compare", model, "q.octavo", "--data", "x.npz", "--rounds", "1")
    assert compared.code == 0, compared.err
    assert "int8" in compared.out


@pytest.mark.filterwarnings("ignore::octavo.OctavoWarning")
def test_what_measures_and_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_other_parts_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    dice = np.random.default_rng(0)
    np.savez("x.npz", x=dice.normal(size=(32, 6)).astype(np.float32), y=np.arange(32) % 8)
    model, data = "my_other_parts_model:build", ("--data", "x.npz")
    calibration = ("--calibration", "x.npz")
    assert octavo_command("quantize", model, *calibration, "-o", "q.octavo").code == 0

    ranked = octavo_command("sensitivity", model, *data, *calibration, "--json")
    assert ranked.code == 0, ranked.err
    assert {layer["layer"] for layer in json.loads(ranked.out)["layers"]} == {"body.0", "body.2"}

    page = octavo_command("report", model, "q.octavo", *data, *calibration, "-o", "page.html")
    assert page.code == 0, page.err
    assert ">body.0<" in Path("page.html").read_text()

    timed = ("bench", "q.octavo", "--runtimes", "torch", "--seconds", "0.1")
    refused = octavo_command(*timed)
    assert "on the command line --model and --data" in " ".join(refused.err.split())
    timed = octavo_command(*timed, "--model", model, *data, "--json")
    assert timed.code == 0, timed.err
    rows = {row["name"]: row for row in json.loads(timed.out)["rows"]}
    assert rows["int8 torch"]["integers"] == "100 %"
    assert all(row["latency_ms"]["32"] > 0 for row in rows.values())

    searched = octavo_command(
        *("search", model, *data, *calibration, "--max-drop", "100", "-o", "s", "--json")
    )
    assert searched.code == 0, searched.err
    assert Path("s/best.octavo").exists()
