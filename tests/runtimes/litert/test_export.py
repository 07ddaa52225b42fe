"""The file as a whole: its ends, its numbers, its size, what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.errors import ExportError

pytest.importorskip("ai_edge_litert")

from octavo.runtimes.litert.export import example_shapes, to_tflite
from octavo.runtimes.litert.flatbuffer import schema
from octavo.runtimes.litert.interpreter import Program
from octavo.runtimes.litert.kernels import KERNELS


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(self.first(image)).relu()
        x = (x + self.second(x)).relu()
        return self.head(x.mean((2, 3)))


def _quantized(target: str = "edge", **how: object) -> octavo.QuantizedModel:
    torch.manual_seed(0)
    how = {"calibration": [torch.randn(8, 3, 12, 12) for _ in range(2)], **how}
    return octavo.quantize(Net().eval(), target=target, progress=False, **how)


@pytest.fixture(scope="module")
def q() -> octavo.QuantizedModel:
    return _quantized()


def _of_file(data: bytes):
    return schema.ModelT.InitFromPackedBuf(data)


def test_a_file_takes_one_sample_with_channels_last(q):
    assert example_shapes(q.graph) == [(1, 3, 12, 12)]
    written = to_tflite(q.graph)
    assert [str(entry) for entry in written.inputs] == ["float32[1, 12, 12, 3]"]
    assert [str(entry) for entry in written.outputs] == ["float32[1, 5]"]
    model = _of_file(written.data)
    signature = model.signatureDefs[0]
    assert [entry.name for entry in signature.inputs] == [b"image"]
    assert [entry.name for entry in signature.outputs] == [b"head"]
    assert model.version == 3


@pytest.mark.parametrize("kernels", KERNELS)
def test_all_kernels_give_what_the_oracle_gives(q, kernels):
    oracle = q.lower("reference")
    program = Program(to_tflite(q.graph), kernels)
    for seed in range(3):
        x = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
        scale = q.graph.node("head.quantized").args[1]
        steps = (program.run([x])[0] - oracle(x)).abs().max() / scale
        assert steps < (0.01 if kernels == "xnnpack" else 2.01)


def test_a_file_of_integers_has_no_floats(q):
    written = to_tflite(q.graph, full_integer=True)
    assert [str(entry) for entry in written.inputs] == ["int8[1, 12, 12, 3]"]
    assert [str(entry) for entry in written.outputs] == ["int8[1, 5]"]
    types = {tensor.type for tensor in _of_file(written.data).subgraphs[0].tensors}
    assert types == {schema.TensorType.INT8, schema.TensorType.INT32}
    x = torch.randn(1, 3, 12, 12)
    assert Program(written).run([x])[0].equal(Program(to_tflite(q.graph)).run([x])[0])


def test_weights_are_integers_with_a_scale_for_each_channel(q):
    graph = _of_file(to_tflite(q.graph).data).subgraphs[0]
    weights = {t.name.decode(): t for t in graph.tensors if t.name.endswith(b".weight")}
    assert set(weights) == {"first.weight", "second.weight", "head.weight"}
    assert {t.type for t in weights.values()} == {schema.TensorType.INT8}
    assert len(weights["second.weight"].quantization.scale) == 16
    assert list(weights["first.weight"].shape) == [16, 3, 3, 3]


def test_constants_begin_where_a_cpu_likes_them_to():
    data = to_tflite(_quantized().graph).data
    model = schema.Model.GetRootAs(data)
    for index in range(1, model.BuffersLength()):
        buffer = model.Buffers(index)
        vector = buffer._tab.Vector(buffer._tab.Offset(4))
        assert vector % 16 == 0


def test_activations_of_other_targets_are_shifted():
    q = _quantized("x86")
    assert q.graph.node("image.quantized").args[-1] == torch.uint8
    written = to_tflite(q.graph)
    x = torch.randn(1, 3, 12, 12)
    torch.testing.assert_close(Program(written).run([x])[0], q.lower("reference")(x))


def test_it_is_little_larger_than_its_integers():
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 64, 3),
        nn.ReLU(),
        nn.Conv2d(64, 256, 3),
        nn.Flatten(),
        nn.Linear(16384, 64),
    ]
    net = nn.Sequential(*layers).eval()
    x = torch.randn(1, 3, 12, 12)
    q = octavo.quantize(net, calibration=[x], target="edge", progress=False)
    integers = sum(t.numel() for t in q.graph.constants.values() if t.dtype == torch.int8)
    assert integers > 1_000_000
    assert len(to_tflite(q.graph).data) < 1.02 * integers + 50_000


def test_an_operator_without_a_form_is_named():
    class Sorts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).cumprod(-1)

    q = octavo.quantize(Sorts().eval(), calibration=[torch.randn(2, 4)], target="edge")
    with pytest.raises(ExportError) as caught:
        to_tflite(q.graph)
    assert str(caught.value) == (
        "no LiteRT form is known for aten.cumprod.default (first in 'cumprod'); octavo.export_onnx "
        "may have one, and the runtimes 'torch' and 'reference' run it"
    )
