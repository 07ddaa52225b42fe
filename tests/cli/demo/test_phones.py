from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import octavo
from octavo.cli.demo import phones
from octavo.cli.demo.demo import Net
from octavo.cli.demo.phones import FORMATS, PhoneFile, phone_files, with_their_sizes
from octavo.measuring.comparison_table import Comparison, Row


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def quantized(images: Tensor) -> octavo.QuantizedModel:
    torch.manual_seed(0)
    return octavo.quantize(Net().eval(), calibration=[images], target="edge", progress=False)


@pytest.mark.parametrize(
    ("row", "package"),
    [
        ("LiteRT", "ai_edge_litert"),
        pytest.param("ExecuTorch", "executorch", marks=pytest.mark.sweep),
    ],
)
def test_a_file_gives_the_models_scores(
    row: str,
    package: str,
    quantized: octavo.QuantizedModel,
    images: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip(package)
    monkeypatch.setattr(phones, "FORMATS", {row: FORMATS[row]})
    said: list[str] = []
    files = phone_files(lambda: quantized, tmp_path, said.append)
    assert [file.name for file in tmp_path.iterdir()] == [FORMATS[row].file]
    with torch.no_grad():
        scores, expected = files[row](images), quantized.lower("reference")(images)
    assert scores.shape == (6, 10)
    step = float(expected.abs().max()) / 127
    assert float((scores - expected).abs().max()) <= 1.01 * step
    assert len({tuple(row) for row in scores.tolist()}) == 6  # of each image its own
    assert said == []


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "executorch", None)

    def unwanted() -> octavo.QuantizedModel:
        raise AssertionError("there is nothing to quantize for")

    said: list[str] = []
    assert phone_files(unwanted, tmp_path, said.append) == {}
    assert list(tmp_path.iterdir()) == []
    first, second = said
    assert first.startswith("model.tflite is left out: ")
    assert 'pip install "octavo[litert]"' in first
    assert second.startswith("model.pte is left out: ")
    assert 'pip install "octavo[executorch]"' in second
    assert "\n" not in first + second


def test_rows_have_the_bytes_of_the_files(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"x" * 250)
    rows = (Row("fp32", "eager", 1000, 1.0), Row("LiteRT", "eager", 16, 0.016))
    comparison = Comparison(rows, "top1", 1, 64, 1, 1, notes=("one",))
    sized = with_their_sizes(comparison, {"LiteRT": PhoneFile(path, lambda image: image)})
    assert (sized["LiteRT"].size_bytes, sized["LiteRT"].size_ratio) == (250, 0.25)
    assert sized["fp32"] == rows[0]
    assert sized.notes[0] == "one"
    assert "model.tflite" in sized.notes[1]
    assert "one image at a time" in sized.notes[1]
    assert with_their_sizes(comparison, {}) is comparison
