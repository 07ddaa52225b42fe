"""TinyNeuralNetwork's documented examples, with their imports alone changed.

Each is one of its folders ``examples/quantization`` and ``examples/converter``, on a small network
and few data: post-training, training, dynamic by either way, scales per tensor and per channel,
layers that are left out, a model that is quantized as it stands, and raw images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sweeping import swept
from torch import Tensor, nn

from octavo.compat.tinynn import (
    DynamicQuantizer,
    PostQuantizer,
    QATQuantizer,
    TFLiteConverter,
    model_tracer,
)
from octavo.errors import PlanError

pytest.importorskip("ai_edge_litert")
pytestmark = pytest.mark.filterwarnings("ignore::octavo.OctavoWarning")  # qnnpack's weights here


class Mobilenet(nn.Module):
    """Of the example's kind: a convolution, then one for each channel and one of 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.deep = nn.Sequential(
            *(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        )
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(torch.relu(self.first(x)))
        return self.fc(x.mean(3).mean(2))


class SimpleLSTM(nn.Module):
    def __init__(self, in_dim: int, out_dim: int, layers: int, num_classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(in_dim, out_dim, layers)
        self.fc = nn.Linear(out_dim, num_classes)
        self.relu = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        out, _ = self.lstm(inputs)
        out = self.fc(out)
        out = self.relu(out)
        return out


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Examples write to ``out``; they set torch's engine, which is everybody's."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    before = torch.backends.quantized.engine
    yield
    torch.backends.quantized.engine = before


def images() -> list[Tensor]:
    return [torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(n)) for n in range(4)]


def sqnr_db(expected: Tensor, found: Tensor) -> float:
    noise = (found - expected).square().mean()
    return float(10 * torch.log10(expected.square().mean() / noise))


# The configs that the example's comments name -> how weights are rounded, and whether activations
# have zero points.
POST: dict[str, tuple[dict[str, object], str, bool]] = {
    "asymmetric uint8": ({"asymmetric": True, "per_tensor": True}, "int8 per-tensor", True),
    "asymmetric int8": ({"asymmetric": True, "per_tensor": False}, "int8 per-channel", True),
    "symmetric int8": ({"asymmetric": False, "per_tensor": False}, "int8 per-channel", False),
    "symmetric uint8": ({"asymmetric": False, "per_tensor": True}, "int8 per-tensor", False),
    "another algorithm": ({"algorithm": "kl"}, "int8 per-tensor", True),
    "no rewrite": ({"rewrite_graph": False}, "int8 per-tensor", True),
    "own rewrite": (
        {"force_overwrite": False, "is_input_quantized": None},
        "int8 per-tensor",
        True,
    ),
}


@pytest.mark.parametrize("name", swept(POST, ["asymmetric int8", "no rewrite"]))
def test_post(name: str) -> None:
    """examples/quantization/post.py, with each config that its comments name."""
    config, weight, zero_points = POST[name]
    with model_tracer():
        model = Mobilenet()
        dummy_input = torch.rand((1, 3, 32, 32))
        quantizer = PostQuantizer(model, dummy_input, work_dir="out", config=config)
        ptq_model = quantizer.quantize()
    ptq_model.to(device="cpu")
    for batch in images():
        ptq_model(batch)
    with torch.no_grad():
        ptq_model.eval()
        ptq_model.cpu()
        ptq_model = quantizer.convert(ptq_model)
        torch.backends.quantized.engine = quantizer.backend
        converter = TFLiteConverter(ptq_model, dummy_input, tflite_path="out/qat_model.tflite")
        written = converter.convert()
        assert sqnr_db(model.eval()(images()[0]), ptq_model(images()[0])) > 22
    assert Path("out/qat_model.tflite").stat().st_size == written.flash_bytes
    assert written.operators["DEPTHWISE_CONV_2D int8"] >= 1
    assert written.operators["CONV_2D int8"] == 2
    assert written.agreement["xnnpack"].agrees
    assert ptq_model.octavo_model.plan.tensors["fc.weight"].values == f"{weight} symmetric"
    strict = {"strict_symmetric_check": True, "quantize_target_type": "int8"}
    if zero_points:
        with pytest.raises(PlanError, match=r"has the zero point \d+ of uint8: say config="):
            TFLiteConverter(ptq_model, dummy_input, tflite_path="out/strict.tflite", **strict)
    else:
        TFLiteConverter(ptq_model, dummy_input, tflite_path="out/strict.tflite", **strict).convert()


def test_qat() -> None:
    """examples/quantization/qat.py, which is the end of quick_start_for_expert.py too."""
    with model_tracer():
        model = Mobilenet()
        dummy_input = torch.rand((1, 3, 32, 32))
        quantizer = QATQuantizer(model, dummy_input, work_dir="out")
        qat_model = quantizer.quantize()
    qat_model.to(device="cpu")
    criterion = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.SGD(qat_model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5, eta_min=0)
    losses = []
    for _ in range(4):
        for batch in images():
            optimizer.zero_grad()
            loss = criterion(qat_model(batch), torch.eye(10)[:4])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        scheduler.step()
    assert losses[-1] < losses[0]
    with torch.no_grad():
        qat_model.eval()
        qat_model.cpu()
        trained = qat_model(images()[0])
        qat_model = quantizer.convert(qat_model)
        torch.backends.quantized.engine = quantizer.backend
        converter = TFLiteConverter(qat_model, dummy_input, tflite_path="out/qat_model.tflite")
        written = converter.convert()
        assert sqnr_db(trained, qat_model(images()[0])) > 35
    assert Path("out/qat_model.tflite").stat().st_size == written.flash_bytes
    assert list(written.in_float) == []


def test_dynamic_by_the_quantizer() -> None:
    """examples/quantization/dynamic.py"""
    with model_tracer():
        model = SimpleLSTM(16, 24, 1, 10)
        dummy_input = torch.rand((5, 1, 16))
        quantizer = DynamicQuantizer(
            model, dummy_input, work_dir="out", config={"asymmetric": False}
        )
        q_model = quantizer.quantize()
    with torch.no_grad():
        q_model.eval()
        q_model.cpu()
        converter = TFLiteConverter(
            q_model,
            dummy_input,
            tflite_path="out/dynamic_quant_model.tflite",
            strict_symmetric_check=True,
            quantize_target_type="int8",
        )
        written = converter.convert()
        assert sqnr_db(q_model(dummy_input), converter.model(dummy_input)) > 40
    assert Path("out/dynamic_quant_model.tflite").stat().st_size == written.flash_bytes
    assert "octavo_source" not in q_model.state_dict()
    assert len(list(q_model.modules())) == 4


@pytest.mark.parametrize("hybrid_per_channel", swept([False, True], [True]))
def test_dynamic_by_the_converter(hybrid_per_channel: bool) -> None:
    """examples/converter/dynamic.py"""
    model = SimpleLSTM(16, 24, 1, 10)
    dummy_input = torch.rand((5, 1, 16))
    with torch.no_grad():
        model.eval()
        model.cpu()
        converter = TFLiteConverter(
            model,
            dummy_input,
            tflite_path="out/dynamic_quant_model.tflite",
            strict_symmetric_check=True,
            quantize_target_type="int8",
            # Enable hybrid quantization
            hybrid_quantization_from_float=True,
            # Enable hybrid per-channel quantization (lower q-loss, but slower)
            hybrid_per_channel=hybrid_per_channel,
            # Use asymmetric inputs for hybrid quantization (lower q-loss, but a bit slower)
            hybrid_asymmetric_inputs=True,
            # Enable hybrid per-channel quantization for `Conv2d` and `DepthwiseConv2d`
            hybrid_conv=True,
            # Enable rewrite for BidirectionLSTMs to UnidirectionalLSTMs
            map_bilstm_to_lstm=False,
        )
        written = converter.convert()
        assert sqnr_db(model(dummy_input), converter.model(dummy_input)) > 30
    assert written.agreement["xnnpack"].agrees
    kind = "per-channel" if hybrid_per_channel else "per-tensor"
    assert converter.model.plan.tensors["fc.weight"].values == f"int8 {kind} symmetric"


def test_a_post_training_lstm_with_a_dynamic_one() -> None:
    """examples/quantization/ptq_with_dynamic_q_lstm.py: the quantizer makes the LSTM dynamic,
    which the example leaves to the converter.
    """
    model = SimpleLSTM(16, 24, 1, 10)
    dummy_input = torch.rand((5, 1, 16))
    quantizer = PostQuantizer(
        model, dummy_input, work_dir="out", config={"dynamic_lstm_quant": True}
    )
    ptq_model = quantizer.quantize()
    for _ in range(5):
        ptq_model(torch.rand_like(dummy_input))
    with torch.no_grad():
        ptq_model.eval()
        ptq_model = quantizer.convert(ptq_model)
        written = TFLiteConverter(
            ptq_model,
            dummy_input,
            tflite_path="out/dynamic_quant_model.tflite",
            quantize_target_type="int8",
            rewrite_quantizable=True,
        ).convert()
    assert written.agreement["xnnpack"].agrees
    tensors = ptq_model.octavo_model.plan.tensors.values()
    assert next(tensor.runs for tensor in tensors if tensor.op == "lstm") == "dynamic"


def test_selective() -> None:
    """examples/quantization/selective_q.py: layers that the config leaves in float."""
    model, dummy_input = Mobilenet(), torch.rand((1, 3, 32, 32))
    config = {"layerwise_config": {"first_0": False}}
    quantizer = PostQuantizer(model, dummy_input, work_dir="out", config=config)
    q_model = quantizer.quantize()
    for batch in images():
        q_model(batch)
    q_model = quantizer.convert(q_model.eval())
    written = TFLiteConverter(q_model, dummy_input, tflite_path="out/q_model.tflite").convert()
    assert written.operators["CONV_2D float32"] == 1
    assert written.operators["CONV_2D int8"] == 1


def test_raw_images() -> None:
    """FAQ: ``fuse_quant_dequant=True`` gives a file that takes integers."""
    model, dummy_input = Mobilenet(), torch.rand((1, 3, 32, 32))
    quantizer = PostQuantizer(model, dummy_input, work_dir="out")
    q_model = quantizer.quantize()
    for batch in images():
        q_model(batch)
    q_model = quantizer.convert(q_model.eval())
    written = TFLiteConverter(
        q_model, dummy_input, "out/q_model.tflite", fuse_quant_dequant=True
    ).convert()
    assert written.inputs == {"x": "int8[1, 32, 32, 3]"}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"input_transpose": False}, r"does not take input_transpose=False: images have .* last"),
        ({"quantize_target_type": "int16"}, "integers in the file are int8; leave it out"),
        ({"hybrid_asymmetric_inputs": False}, "round each row with a zero point"),
        ({"float16_quantization": True}, "no setting 'float16_quantization' here; it may have"),
    ],
)
def test_what_the_converter_does_not_share(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        TFLiteConverter(Mobilenet(), torch.rand(1, 3, 32, 32), "m.tflite", **settings)
