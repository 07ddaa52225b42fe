"""Weights of float layers: kept as integers in the file, floats once it is loaded."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import octavo

SCALES = 96  # of no layer are there more, and of every layer's weights
LAYERS = {
    "gru": (lambda: nn.GRU(8, 16, bidirectional=True), torch.randn(5, 2, 8)),
    "rnn": (lambda: nn.RNN(8, 16), torch.randn(5, 2, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 8, 3, 2), torch.randn(2, 4, 6, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_integers_are_stored_and_floats_are_run(name: str, tmp_path: Path) -> None:
    onnx, onnxruntime = (pytest.importorskip(package) for package in ("onnx", "onnxruntime"))
    from octavo.runtimes.onnx.export import to_onnx
    from octavo.runtimes.onnxruntime import RUNTIME

    make, x = LAYERS[name]
    torch.manual_seed(0)
    q = octavo.quantize(make(), calibration=[x], target="onnxruntime", progress=False)
    assert RUNTIME.onnx is not None
    model = to_onnx(q.graph, RUNTIME.onnx.dialect)
    matrices = [i for i in model.graph.initializer if math.prod(i.dims) > SCALES]
    assert {i.data_type for i in matrices} == {onnx.TensorProto.INT8}

    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), settings)
    optimized = onnx.load(settings.optimized_model_filepath)
    read = {name for node in optimized.graph.node for name in node.input}
    loaded = [
        i for i in optimized.graph.initializer if math.prod(i.dims) > SCALES and i.name in read
    ]
    assert {i.data_type for i in loaded} == {onnx.TensorProto.FLOAT}
    want, have = q.lower("reference")(x), q.lower("onnxruntime")(x)
    for one, other in zip(*map(torch.utils._pytree.tree_leaves, (want, have)), strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)


def test_states_of_zeros_are_left_out() -> None:
    pytest.importorskip("onnxruntime")
    from octavo.runtimes.onnx.export import to_onnx
    from octavo.runtimes.onnxruntime import RUNTIME

    torch.manual_seed(0)
    x = torch.randn(5, 2, 8)
    q = octavo.quantize(nn.LSTM(8, 16, 2), (x,), mode="dynamic", progress=False)
    assert RUNTIME.onnx is not None
    model = to_onnx(q.graph, RUNTIME.onnx.dialect)
    kinds = [node.op_type for node in model.graph.node]
    assert "Expand" not in kinds
    want, have = q.lower("reference")(x), q.lower("onnxruntime")(x)
    torch.testing.assert_close(have[0], want[0], atol=0.02, rtol=0)
