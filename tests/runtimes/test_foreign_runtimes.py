"""ONNX Runtime and OpenVINO: results, options, what they say of themselves, refusals."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from residual import WideResidualNet
from torch import nn

import octavo
from octavo.errors import ExportError, InputError, MissingExtra, RuntimeUnavailable
from octavo.runtimes import cpu, saturation

RUNTIMES = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def q():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    return octavo.quantize(WideResidualNet(), x, calibration=[x], target="x86-avx2", progress=False)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_any_batch_size_in_any_order(q, runtime):
    lowered, oracle = q.lower(runtime), q.lower("reference")
    for batch in (2, 1, 5, 2):
        x = torch.randn(batch, 3, 16, 16)
        for _ in range(2):
            assert torch.allclose(lowered(x), oracle(x), atol=0.02)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_results_of_one_call_are_left_alone_by_the_next(q, runtime):
    lowered = q.lower(runtime)
    lowered(torch.randn(2, 3, 16, 16))
    first = lowered(torch.ones(2, 3, 16, 16))
    kept = first.clone()
    lowered(torch.zeros(2, 3, 16, 16))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_threads_get_the_results_of_their_own_calls(q, runtime):
    lowered = q.lower(runtime, threads=1)
    inputs = [torch.randn(1 + seed % 3, 3, 16, 16) for seed in range(16)]
    expected = [lowered(x) for x in inputs]
    places = [place % 16 for place in range(800)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda place: lowered(inputs[place]), places))
    wrong = [p for p, y in zip(places, found, strict=True) if not torch.equal(y, expected[p])]
    assert not wrong


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_inputs_of_another_device_are_refused(q, runtime):
    with pytest.raises(InputError, match=r'an input is on meta: give it x.to\("cpu"\)'):
        q.lower(runtime)(torch.empty(2, 3, 16, 16, device="meta"))


class WithLengths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, lengths, x, mask, y):
        return self.layer(y) - self.layer(x)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_inputs_that_the_model_does_not_read_are_passed_over(runtime):
    given = torch.tensor([1, 2, 3]), torch.randn(3, 8), torch.ones(3) > 0, torch.randn(3, 8)
    q = octavo.quantize(WithLengths(), given, calibration=[given], progress=False)
    assert torch.allclose(q.lower(runtime)(*given), q.lower("reference")(*given), atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_other_memory_layouts_are_read_rightly(q, runtime):
    lowered, x = q.lower(runtime), torch.randn(2, 3, 16, 16)
    assert torch.equal(lowered(x.to(memory_format=torch.channels_last)), lowered(x))


@pytest.mark.parametrize(
    ("runtime", "target"), [("onnxruntime", "onnxruntime"), ("openvino", "x86-avx2")]
)
def test_it_says_which_layers_run_on_integers(runtime, target):
    x = torch.randn(4, 3, 16, 16)
    q = octavo.quantize(WideResidualNet(), x, calibration=[x], target=target, progress=False)
    lowered = q.lower(runtime).lowered
    assert lowered.kernels.keys() >= {"a", "b", "classes"}
    assert all(kernel.startswith(runtime) for kernel in lowered.kernels.values())
    assert not lowered.fallbacks.keys() & {"a", "b", "classes"}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_threads_and_batch(q, runtime):
    lowered = q.lower(runtime, threads=1, batch=2)
    assert lowered(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    with pytest.raises(
        InputError, match=r"are \[3, 3, 16, 16\], the model was lowered with batch=2"
    ):
        lowered(torch.randn(3, 3, 16, 16))
    with pytest.raises(RuntimeUnavailable, match=r"threads=4096, but this machine has \d+ cores"):
        q.lower(runtime, threads=4096)
    with pytest.raises(InputError, match="batch is 0: give a whole number"):
        q.lower(runtime, batch=0)


@pytest.mark.parametrize("runtime", ["torch", "reference"])
def test_runtimes_of_torch_have_torch_s_settings(q, runtime):
    with pytest.raises(RuntimeUnavailable, match=f"{runtime} runtime has no option 'threads'"):
        q.lower(runtime, threads=1)


def test_onnxruntime_keeps_nothing(q, tmp_path):
    with pytest.raises(RuntimeUnavailable, match="onnxruntime runtime has no option 'cache'"):
        q.lower("onnxruntime", cache=tmp_path)
    assert q.lower("fastest", batch=2, cache=tmp_path)(torch.randn(2, 3, 16, 16)).shape == (2, 10)


def test_what_openvino_compiled_is_kept(q, tmp_path):
    x = torch.randn(2, 3, 16, 16)
    first = q.lower("openvino", cache=tmp_path)(x)
    blobs = list(tmp_path.glob("*.blob"))
    assert blobs
    assert torch.equal(q.lower("openvino", cache=tmp_path)(x), first)
    for blob in blobs:
        blob.write_bytes(b"damaged")
    assert torch.equal(q.lower("openvino", cache=tmp_path)(x), first)


def test_a_folder_that_cannot_be_written_to_costs_only_the_cache(q, tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    assert q.lower("openvino", cache=file / "below")(torch.randn(1, 3, 16, 16)).shape == (1, 10)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_inputs_that_do_not_fit(q, runtime):
    lowered = q.lower(runtime)
    with pytest.raises(InputError, match="expected float32"):
        lowered(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    with pytest.raises(InputError):
        lowered(torch.randn(2, 3, 16))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_missing_package_says_what_to_install(q, runtime, monkeypatch):
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(MissingExtra, match=rf'pip install "octavo\[{runtime}\]"'):
        q.lower(runtime)


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return torch.fft.rfft(self.layer(x)).abs()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_operator_without_an_onnx_form_is_named(runtime):
    q = octavo.quantize(Spectrum(), torch.randn(2, 8), target="x86-avx2", progress=False)
    with pytest.raises(ExportError, match=r"aten\.fft_rfft.*'torch' and 'reference' run it"):
        q.lower(runtime)


def test_weights_that_would_overflow_are_float_in_openvino(monkeypatch):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 8), nn.ReLU()), torch.randn(4, 16)
    q = octavo.quantize(model, x, calibration=[x], target="openvino", progress=False)
    monkeypatch.setattr(cpu, "saturates", lambda: True)
    lowered = q.lower("openvino")
    assert lowered.lowered.fallbacks == {"0": saturation.REASON}
    assert torch.allclose(lowered(x), q.lower("reference")(x), atol=1e-5)


def test_pairs_of_products_that_fit():
    weight = torch.tensor([[100, 27, -128], [-64, -63, 0]], dtype=torch.int8)
    assert saturation.overflows(weight, 255) == (255 * 128 > 32767)
    assert not saturation.overflows(weight[1:], 255)
    assert saturation.overflows(torch.tensor([[100, 29]], dtype=torch.int8), 255)


def test_all_weights_of_an_lstm_are_looked_at():
    layer, x = nn.LSTM(8, 8), torch.randn(3, 2, 8)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.eye(8).repeat(4, 1))  # one product in each row
        layer.weight_hh_l0.fill_(1.0)
    q = octavo.quantize(layer, x, mode="dynamic", target="onnxruntime", progress=False)
    found = saturation.overflowing(q.graph)
    assert [weight.name for weight in found.values()] == ["weight_hh_l0"]


def test_the_fastest_says_how_fast_the_others_are(q):
    fastest = q.lower("fastest", batch=2)
    assert fastest.lowered.runtime in ("torch", *RUNTIMES)
    assert f"{fastest.lowered.runtime} is the fastest here: " in str(fastest.summary())
    assert fastest.lowered.note.count(" ms") == 3
    assert fastest(torch.randn(2, 3, 16, 16)).shape == (2, 10)
