"""The examples run, and one that trains goes on after a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from small_flowers import accept_flowers, write_flowers

import octavo

torchvision = pytest.importorskip("torchvision")

from examples import flowers  # noqa: E402

ROOT = Path(__file__).parents[1]
COMMAND = [
    *(sys.executable, "-m", "examples.qat_digits", "--networks", "demo", "--bits", "4"),
    *("--epochs", "2", "--float-epochs", "1", "--views", "1"),
]


def _run(out: Path) -> dict[str, object]:
    done = subprocess.run([*COMMAND, "--out", str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads((out / "results.json").read_text())["demo"]
    return found


@pytest.mark.sweep
def test_training_with_rounding_goes_on_after_a_kill(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = _run(whole)
    running = subprocess.Popen(
        [*COMMAND, "--out", str(killed)], cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ}
    )
    checkpoint = killed / "demo-4.checkpoint"
    started = time.monotonic()
    while not checkpoint.exists():
        assert running.poll() is None
        assert time.monotonic() - started < 300
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (killed / "results.json").exists()
    assert _run(killed) == expected
    assert len(expected["4 bits"]["by epoch"]) == 2  # type: ignore[call-overload, index]
    assert (killed / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert octavo.load(killed / "demo-4.octavo").provenance["trained"] == "with rounding"


class Small(torch.nn.Module):
    """In ResNet-18's place, which takes half a minute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(3, 32, 7, stride=4), torch.nn.Linear(32, 1000)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(images)).mean((2, 3)))


@pytest.mark.sweep
def test_flowers_are_learned_and_quantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flowers, "SIZE", 64)
    monkeypatch.setattr(octavo, "compare", partial(octavo.compare, rounds=1))
    monkeypatch.setattr(torchvision.models, "resnet18", Small)
    write_flowers(tmp_path)
    accept_flowers(tmp_path, monkeypatch)
    torch.save(Small().state_dict(), tmp_path / "resnet18.pth")
    words = ["--data", tmp_path, "--weights", tmp_path / "resnet18.pth", "--out", tmp_path / "out"]
    flowers.main(list(map(str, words)))
    printed = capsys.readouterr().out
    assert "16 samples" in printed
    q = octavo.load(tmp_path / "out" / "flowers.octavo")
    images, labels = next(iter(flowers.flowers(tmp_path, "test")))
    assert (q(images).argmax(1) == labels).float().mean() > 0.8
    assert re.findall(r"(\w+\.\w+): [\d.]+ MB", printed) == ["flowers.pth", "flowers.octavo"]


def test_flowers_without_a_network_say_where_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(
        torchvision.datasets.flowers102, "download_and_extract_archive", unreachable
    )
    with pytest.raises(SystemExit, match=r"no network.*put 102flowers\.tgz, .*flowers-102$"):
        flowers.main(["--data", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"there is no folder .*make an empty one"):
        flowers.main(["--data", str(tmp_path / "flwers")])
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", unreachable)
    with pytest.raises(octavo.OctavoError, match=r"get https:.*\.pth, and name the file with"):
        flowers.resnet(None)
