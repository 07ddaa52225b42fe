from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import octavo
from octavo.cli.demo import demo, phones
from octavo.cli.demo.demo import DemoResult, Net, augmented, run_demo, trained_net
from octavo.cli.demo.digits import Digits, load_digits
from octavo.errors import ArtifactError, InputError, MissingExtra
from octavo.model.replay import Replay, replay_in_fresh_process
from octavo.reporting.plots import History, training
from octavo.reporting.plots.figure import save_png
from octavo.runtimes import timing

QUICK_FLOOR = 70.0  # one epoch of scikit-learn's digits reaches 80 to 90 %


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo that takes a second: few images, few rounds."""
    digits = load_digits()
    few = Digits("a few", TensorDataset(*digits.train[:64]), TensorDataset(*digits.test[:32]))
    monkeypatch.setattr(demo, "load_digits", lambda mnist: few)
    monkeypatch.setattr(timing, "MAX_ROUNDS", 1)
    monkeypatch.setattr(phones, "FORMATS", {})


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    """The whole demo but for ExecuTorch, which takes seconds; with one epoch and few rounds."""
    lines: list[str] = []
    out = tmp_path_factory.mktemp("demo") / "build"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "MAX_ROUNDS", 2)
        patch.setattr(phones, "FORMATS", {"LiteRT": phones.FORMATS["LiteRT"]})
        result = run_demo(out, epochs=1, progress=False, say=lines.append)
    (out / "said.txt").write_text("\n".join(lines))
    return result


def test_the_network_is_the_articles() -> None:
    net = Net()
    assert [type(child) for child in net.children()] == [
        *(nn.Conv2d, nn.BatchNorm2d, nn.ReLU) * 2,
        nn.MaxPool2d,
        nn.Linear,
        nn.ReLU,
        nn.Linear,
    ]
    assert sum(parameter.numel() for parameter in net.parameters()) == 1_630_282
    assert net(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_it_writes_its_files_and_nothing_else(result: DemoResult) -> None:
    names = {path.name for path in result.folder.iterdir()} - {"model.tflite"}
    assert names == {"model.octavo", "comparison.json", "report.html", "training.png", "said.txt"}


def test_the_file_for_phones_is_in_the_table(result: DemoResult) -> None:
    pytest.importorskip("ai_edge_litert")
    file = result.folder / "model.tflite"
    row = result.comparison["LiteRT"]
    assert row.size_bytes == file.stat().st_size
    assert row.agreement is not None
    assert row.agreement >= 98.0
    assert json.loads((result.folder / "comparison.json").read_text())["LiteRT"]["latency_ms"] > 0


def test_the_comparison_holds_what_it_promises(result: DemoResult) -> None:
    data = json.loads((result.folder / "comparison.json").read_text())
    for name in ("fp32", "bf16", "int8"):
        for key in ("size_mb", "top1", "latency_ms"):
            assert data[name][key] > 0
    assert data["fp32"]["top1"] > QUICK_FLOOR
    assert data["settings"]["batch_size"] == 64
    assert data["settings"]["samples"] == 500
    assert data["demo"]["fresh_process"]["different_predictions"] == 0
    assert data["demo"]["target"] == octavo.host_target()


def test_size_and_accuracy(result: DemoResult) -> None:
    fp32, int8 = result.comparison["fp32"], result.comparison["int8"]
    artifact = (result.folder / "model.octavo").stat().st_size
    assert artifact == int8.size_bytes
    assert artifact <= 0.27 * fp32.size_bytes
    assert int8.agreement >= 98.0
    assert int8.sqnr_db >= 30.0


def test_the_picture(result: DemoResult) -> None:
    content = (result.folder / "training.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    width, height = struct.unpack(">II", content[16:24])
    assert (width, height) == (1500, 630)


def test_it_says_what_happens_and_for_which_target(result: DemoResult) -> None:
    said = (result.folder / "said.txt").read_text()
    assert "1297 for training, 500 for test" in said
    assert "epoch  1/1" in said
    assert f"target: {octavo.host_target()} (this CPU" in said


def test_training_is_repeatable_and_leaves_the_random_numbers_alone(few_digits: None) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, loaders = trained_net(epochs=1, seed=1)
    assert torch.equal(torch.rand(3), expected)
    second, _ = trained_net(epochs=1, seed=1)
    assert not first.training
    images = next(iter(loaders.test))[0]
    with torch.no_grad():
        assert torch.equal(first(images).argmax(1), second(images).argmax(1))


def test_augmentation_moves_digits_and_keeps_the_background() -> None:
    images = -torch.ones(32, 1, 28, 28)
    images[:, :, 10:18, 10:18] = 1.0
    moved = augmented(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert float(moved.min()) == -1.0
    assert torch.equal(moved[:, :, 0], images[:, :, 0])
    assert len({image.numpy().tobytes() for image in moved}) == 32
    rows = torch.linspace(0, 27, 28)
    weight = (moved + 1).sum((1, 3))
    centers = (weight * rows).sum(1) / weight.sum(1)
    assert float((centers - 13.5).abs().max()) <= 2.2


@pytest.mark.sweep
def test_a_file_that_predicts_otherwise_is_found(result: DemoResult) -> None:
    images = torch.rand(6, 1, 28, 28)
    q = octavo.load(result.folder / "model.octavo")
    outputs = q(images)
    again = replay_in_fresh_process(result.folder / "model.octavo", images, outputs)
    assert again == Replay(samples=6, different_predictions=0, max_difference=0.0)
    altered = outputs.clone()
    altered[2] = -altered[2]
    again = replay_in_fresh_process(result.folder / "model.octavo", images, altered)
    assert again.different_predictions == 1
    assert again.max_difference > 0


def test_a_file_that_does_not_load_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"does not run in a fresh process: .*no such file"):
        replay_in_fresh_process(tmp_path / "none.octavo", torch.zeros(1), torch.zeros(1))


@pytest.mark.sweep
def test_the_demo_fails_if_the_file_predicts_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_digits: None
) -> None:
    monkeypatch.setattr(demo, "replay_in_fresh_process", lambda *given: Replay(32, 3, 0.5))
    with pytest.raises(ArtifactError, match="predicts 3 of 32 images differently"):
        run_demo(tmp_path, epochs=1, progress=False)


def test_interrupted_while_writing_it_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    def interrupted(self: Figure, file: Path, **options: object) -> None:
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", interrupted)
    history = History([50.0], [1.0], [60.0], [0.9])
    with pytest.raises(KeyboardInterrupt):
        save_png(training(history, "title"), tmp_path / "training.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "extra"), [("matplotlib", "plots"), ("jinja2", "report"), ("sklearn", "demo")]
)
def test_missing_packages_are_told_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf'pip install "octavo\[{extra}\]"'):
        run_demo(tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_epochs_and_folder_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="epochs=0"):
        run_demo(tmp_path, epochs=0)
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot write to"):
        run_demo(tmp_path / "file")
