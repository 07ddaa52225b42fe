"""The article on quantization in practice: observers and their numbers, eager and FX mode side by
side, training, sensitivity one layer at a time, and signal to noise by layer.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from observing import ARTICLE
from torch import Tensor, nn

from compat.networks import FUSED, Trained, percent_right
from octavo.compat import numeric_suite as ns
from octavo.compat import quantization
from octavo.compat.quantization import quantize_fx
from octavo.compat.quantization.observer import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from octavo.errors import OctavoWarning

BACKEND = "fbgemm"


def found(observer: nn.Module) -> tuple[list[float], list[int]]:
    """Scale and zero point after the article's two batches."""
    for x in ARTICLE:
        observer(x)
    scale, zero_point = observer.calculate_qparams()  # type: ignore[operator]
    return scale.tolist(), zero_point.tolist()


def test_observers_print_the_articles_numbers() -> None:
    assert found(MinMaxObserver()) == ([pytest.approx(0.0112, abs=5e-5)], [124])
    assert found(MovingAverageMinMaxObserver()) == ([pytest.approx(0.0101, abs=5e-5)], [139])
    scale, zero_point = found(HistogramObserver())
    # The article's is 0.0100 and 106; with the two ends free nothing has to be clipped here.
    assert scale == [pytest.approx(0.0107, abs=8e-4)]
    assert 100 <= zero_point[0] <= 130


def test_schemes_print_the_articles_numbers() -> None:
    expected = {
        torch.per_tensor_affine: ([pytest.approx(0.0101, abs=5e-5)], [139]),
        torch.per_tensor_symmetric: ([pytest.approx(0.0109, abs=6e-5)], [128]),
    }
    for qscheme, numbers in expected.items():
        assert found(MovingAverageMinMaxObserver(qscheme=qscheme)) == numbers
    scales, zero_points = found(MovingAveragePerChannelMinMaxObserver(ch_axis=0))
    assert scales == pytest.approx([0.0090, 0.0075, 0.0055], abs=5e-5)
    assert zero_points == [125, 187, 82]


def test_a_qconfig_prints_its_observers() -> None:
    torch.backends.quantized.engine = torch.backends.quantized.engine  # such a line does no harm
    qconfig = quantization.QConfig(
        activation=MovingAverageMinMaxObserver.with_args(qscheme=torch.per_tensor_affine),
        weight=MovingAveragePerChannelMinMaxObserver.with_args(qscheme=torch.qint8),
    )
    assert str(qconfig).count("functools.partial(<class 'octavo.compat.quantization.observer.") == 2
    assert "qscheme=torch.per_tensor_affine){}, weight=" in str(qconfig)


def test_dynamic_in_both_modes() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 64, (8,)), nn.ReLU(), nn.Linear(16, 10), nn.LSTM(10, 10)
    ).eval()
    eager = quantization.quantize_dynamic(
        model=model, qconfig_spec={nn.LSTM, nn.Linear}, dtype=torch.qint8, inplace=False
    )
    qconfig_dict = {"": quantization.default_dynamic_qconfig}
    fx = quantize_fx.convert_fx(quantize_fx.prepare_fx(model, qconfig_dict))
    for made in (eager, fx):
        kinds = [str(part).split("(")[0] for part in made]
        assert kinds == ["Conv2d", "ReLU", "DynamicQuantizedLinear", "DynamicQuantizedLSTM"]


def convolutions(kernel: int) -> nn.Sequential:
    """The article's model, narrower."""
    return nn.Sequential(nn.Conv2d(2, 16, kernel), nn.ReLU(), nn.Conv2d(16, 32, kernel), nn.ReLU())


def fused_between_stubs(model: nn.Sequential) -> nn.Sequential:
    """Fuse, and insert the stubs."""
    quantization.fuse_modules(model, ["0", "1"], inplace=True)
    quantization.fuse_modules(model, ["2", "3"], inplace=True)
    return nn.Sequential(quantization.QuantStub(), *model, quantization.DeQuantStub())


def test_static_in_both_modes() -> None:
    plain = convolutions(3)
    m = fused_between_stubs(copy.deepcopy(plain))
    m.qconfig = quantization.get_default_qconfig(BACKEND)
    quantization.prepare(m, inplace=True)
    batches = [torch.rand(1, 2, 28, 28) for _ in range(10)]
    with torch.inference_mode():
        for x in batches:
            m(x)
    quantization.convert(m, inplace=True)
    assert m[1].weight().element_size() == 1  # 1 byte instead of 4

    plain.eval()
    prepared = quantize_fx.prepare_fx(plain, {"": quantization.get_default_qconfig(BACKEND)})
    with torch.inference_mode():
        for x in batches:
            prepared(x)
    fx = quantize_fx.convert_fx(prepared)
    assert SQNR(m(batches[0]), fx(batches[0])) > 40  # one model, twice
    assert SQNR(plain(batches[0]), fx(batches[0])) > 30


def test_training() -> None:
    m = fused_between_stubs(convolutions(8))
    m.train()
    m.qconfig = quantization.get_default_qconfig(BACKEND)  # as in the article
    with pytest.warns(OctavoWarning, match="get_default_qat_qconfig"):
        quantization.prepare_qat(m, inplace=True)
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        out = m(torch.rand(10, 2, 24, 24))
        loss = torch.pow(0.5 - out, 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    m.eval()
    x = torch.rand(1, 2, 24, 24)
    trained = m(x)
    quantization.convert(m, inplace=True)
    assert SQNR(trained, m(x)) > 40


def SQNR(x: Tensor, y: Tensor) -> float:
    """The article's function."""
    return (20 * torch.log10(torch.norm(x) / torch.norm(x - y))).item()


def test_sensitivity_one_layer_at_a_time(digits: Trained) -> None:
    model, x = digits.model, digits.images
    noise = {}
    for quantized_layer, _ in model.named_modules():
        qconfig = quantization.get_default_qconfig(BACKEND)
        qconfig_dict = {"": None, "module_name": [(quantized_layer, qconfig)]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what has no weights stays float, and says so
            prepared = quantize_fx.prepare_fx(model, qconfig_dict)
            prepared(x)
            quantized = quantize_fx.convert_fx(prepared)
        noise[quantized_layer] = SQNR(model(x), quantized(x))
    layers = {name for name, decibels in noise.items() if decibels < 200}
    assert layers == {"conv1", "conv2", "fc1", "fc2"}
    assert min(noise.values()) > 25
    assert percent_right(model, digits.test) > 95


def test_signal_to_noise_by_layer(digits: Trained) -> None:
    fp32_model = quantization.QuantWrapper(quantization.fuse_modules(digits.model, FUSED)).eval()
    fp32_model.qconfig = quantization.get_default_qconfig(BACKEND)
    prepared = quantization.prepare(fp32_model)
    prepared(digits.images)
    int8_model = quantization.convert(prepared)

    weights = ns.compare_weights(fp32_model.state_dict(), int8_model.state_dict())
    outputs = ns.compare_model_outputs(fp32_model, int8_model, digits.images)
    assert len(weights) == len(outputs) == 4
    for key in weights:
        assert SQNR(weights[key]["float"], weights[key]["quantized"].dequantize()) > 35
    for key in outputs:
        pair = outputs[key]
        assert SQNR(pair["float"][0], pair["quantized"][0].dequantize()) > 25
