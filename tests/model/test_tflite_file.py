"""`export_tflite`: what it writes, says and refuses."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import octavo
from octavo.errors import ExportError, MissingExtra


@pytest.fixture(scope="module")
def q() -> octavo.QuantizedModel:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    data = [torch.randn(4, 3, 8, 8)]
    return octavo.quantize(net.eval(), calibration=data, target="edge", progress=False)


def test_what_it_says(q, tmp_path):
    pytest.importorskip("ai_edge_litert")
    path = tmp_path / "m.tflite"
    written = octavo.export_tflite(q, path)
    assert path.read_bytes()[4:8] == b"TFL3"
    assert written.flash_bytes == path.stat().st_size
    assert written.inputs == {"input": "float32[1, 8, 8, 3]"}
    assert written.outputs == {"4": "float32[1, 3]"}
    assert written.fixed == ("N=1", "input_2=8", "input_3=8")
    assert written.operators["CONV_2D int8"] == 1
    assert written.in_float == {}
    # the input in float and in int8, or the first layer's input and result
    assert written.arena_bytes == 5 * 8 * 8 * 3
    assert set(written.agreement) == {"xnnpack", "optimized", "reference"}
    assert all(near.agrees for near in written.agreement.values())
    text = str(written)
    assert "a .tflite file has fixed sizes, here the example's: N=1, input_2=8, input_3=8" in text
    assert "an arena of 1 kB" in text
    assert written.to_dict()["operators"] == written.operators


def test_a_file_for_boards_holds_no_floats(q, tmp_path):
    pytest.importorskip("ai_edge_litert")
    written = octavo.export_tflite(q, tmp_path / "m.tflite", full_integer=True)
    assert written.inputs == {"input": "int8[1, 8, 8, 3]"}
    assert all(kind.endswith("int8") for kind in written.operators)
    assert written.agreement["xnnpack"].agrees


def test_a_file_that_computes_something_else_is_not_written(q, tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    from octavo.runtimes.litert import layers
    from octavo.runtimes.litert.layers import bias

    monkeypatch.setattr(layers, "bias", lambda w, ref, *rest: bias(w, None, *rest))
    path = tmp_path / "m.tflite"
    with pytest.raises(ExportError, match="LiteRT computes something else from the file"):
        octavo.export_tflite(q, path)
    assert list(tmp_path.iterdir()) == []
    octavo.export_tflite(q, path, check=False)
    assert path.exists()


def test_what_is_in_float_is_told_in_a_line_for_all_that_are_alike(tmp_path):
    pytest.importorskip("ai_edge_litert")
    torch.manual_seed(0)
    steps = 5
    net = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 2))
    x = torch.randn(4, steps, 3)
    q = octavo.quantize(net.eval(), calibration=[x], target="edge", progress=False)
    written = octavo.export_tflite(q, tmp_path / "m.tflite")
    kinds = "DEQUANTIZE float32, LOGISTIC float32, MUL float32"
    assert written.in_float == {"1": kinds, "3": kinds}
    assert f"in float: 1, 3: {kinds}" in str(written)


def test_kernels_that_cannot_run_the_file_are_named(tmp_path):
    pytest.importorskip("ai_edge_litert")
    net = nn.Sequential(nn.Linear(4, 4), nn.ELU()).eval()
    q = octavo.quantize(net, calibration=[torch.randn(4, 4)], target="edge", progress=False)
    written = octavo.export_tflite(q, tmp_path / "m.tflite")
    assert written.agreement.keys() == {"xnnpack", "optimized"}
    assert list(written.refused) == ["reference"]
    assert "not for LiteRT's reference kernels: LiteRT cannot load the model" in str(written)
    assert "'ELU'" in written.refused["reference"]


def test_the_steps_of_a_recurrent_layer_are_counted(tmp_path):
    pytest.importorskip("ai_edge_litert")
    torch.manual_seed(0)
    net, x = nn.GRU(3, 4, batch_first=True), torch.randn(2, 5, 3)
    q = octavo.quantize(net.eval(), calibration=[x], target="edge", progress=False)
    written = octavo.export_tflite(q, tmp_path / "m.tflite")
    words = written.in_float["gru"]
    assert "5 TANH float32" in words
    assert words.count("TANH") == 1


def test_without_the_package(q, tmp_path, monkeypatch):
    for name in ("ai_edge_litert", "octavo.runtimes.litert.export"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delitem(sys.modules, "octavo.runtimes.litert.flatbuffer", raising=False)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(MissingExtra, match=r"octavo\[litert\]"):
        octavo.export_tflite(q, tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []
