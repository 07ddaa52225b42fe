"""`export_onnx`: files that both runtimes read, with integers for weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import nn

import octavo
from octavo.errors import ArtifactError, ExportError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.stem(x).relu().mean((2, 3)))


def exported(q, path, **how):
    octavo.export_onnx(q, path, **how)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    return onnx.load(path)


def answers(path, x):
    """What each runtime makes of the file, told to compute what it says."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    compiled = openvino.Core().compile_model(str(path), "CPU", exact)
    yield session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    yield compiled([x.numpy()])[0]


@pytest.fixture(scope="module")
def q():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    return octavo.quantize(Net(), x, calibration=[x], target="x86-avx2", progress=False)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_both_runtimes_read_both_dialects(q, runtime, tmp_path):
    path, x = tmp_path / "m.onnx", torch.randn(5, 3, 8, 8)
    exported(q, path, runtime=runtime)
    for found in answers(path, x):
        assert np.allclose(found, q(x).numpy(), atol=0.02)


def test_weights_are_integers_and_names_are_those_of_the_modules(q, tmp_path):
    model = exported(q, tmp_path / "m.onnx")
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    int8 = onnx.TensorProto.INT8
    assert stored["stem.weight"].data_type == stored["stem.weight_zero_point"].data_type == int8
    assert np.array_equal(
        onnx.numpy_helper.to_array(stored["stem.weight"]), q.graph.constants["stem.weight"]
    )
    assert not any(node.op_type == "Cast" for node in model.graph.node)
    assert {"stem", "relu", "head"} <= {node.name for node in model.graph.node}
    scale = stored["stem.weight_scale"]
    assert list(scale.dims) == [16]
    assert model.opset_import[0].version == 20
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


@pytest.mark.parametrize("symmetric", [True, False])
def test_four_bits_are_stored_two_to_a_byte(symmetric, tmp_path):
    torch.manual_seed(0)
    qconfig = octavo.weight_only_qconfig(4, group_size=32, symmetric=symmetric)
    x = torch.randn(3, 64)
    q = octavo.quantize(nn.Linear(64, 32), x, qconfig=qconfig, progress=False)
    path = tmp_path / "m.onnx"
    model = exported(q, path)
    dtype = onnx.TensorProto.INT4 if symmetric else onnx.TensorProto.UINT4
    (stored,) = [t for t in model.graph.initializer if list(t.dims) in ([32, 64], [64, 32])]
    assert stored.data_type == dtype
    assert len(stored.raw_data) == 32 * 64 // 2
    for found in answers(path, x):
        assert np.allclose(found, q.lower("reference")(x).numpy(), atol=1e-4)


def test_dynamic_layers_are_products_of_integers(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(3, 64)
    whole = octavo.dynamic_qconfig("x86-avx2", per_token=False)
    q = octavo.quantize(nn.Linear(64, 32), x, qconfig=whole, target="x86-avx2", progress=False)
    path = tmp_path / "m.onnx"
    kinds = [node.op_type for node in exported(q, path).graph.node]
    assert kinds[:2] == ["DynamicQuantizeLinear", "MatMulInteger"]
    for found in answers(path, x):
        assert np.allclose(found, q.lower("reference")(x).numpy(), atol=1e-4)


def test_a_file_is_whole_or_not_there(q, tmp_path):
    with pytest.raises(ExportError, match="no ONNX dialect for the runtime 'tensorrt'"):
        octavo.export_onnx(q, tmp_path / "m.onnx", runtime="tensorrt")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ArtifactError, match="cannot write"):
        octavo.export_onnx(q, blocked / "m.onnx")
    assert list(tmp_path.iterdir()) == [blocked]


def test_no_clip_stands_between_a_relu_and_its_integers(tmp_path):
    """TensorRT fuses a layer and the QuantizeLinear that follows."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(),
        nn.Linear(36, 4),
    )
    q = octavo.quantize(
        net, calibration=[torch.rand(2, 3, 8, 8)], target="tensorrt", progress=False
    )
    made = {name: n for n in exported(q, tmp_path / "m.onnx").graph.node for name in n.output}
    clips = [n for n in made.values() if n.op_type == "Clip"]
    assert [made[n.input[0]].op_type if n.input[0] in made else "" for n in clips] == ["", "Conv"]
