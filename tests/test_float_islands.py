"""Complex numbers, spectra and losses stay float between int8 layers, and are saved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_transformers import built
from torch import Tensor, nn
from torch.nn import functional

import octavo
from octavo.errors import ExportError


class Calls(nn.Module):
    """A linear layer, something else of what it makes, and another linear layer."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], columns: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.first, self.last = nn.Linear(16, 16), nn.Linear(columns, 4)
        self.modes = nn.Parameter(0.3 * torch.randn(16, 9, dtype=torch.complex64))
        self.register_buffer("window", torch.hann_window(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self, self.first(x)))


def spectrogram(m: Any, y: Tensor) -> Tensor:
    return torch.stft(y, 8, 4, window=m.window, return_complex=True).abs()[:, :, 1:].flatten(1)


ISLANDS = {
    "Fourier layer of FNet": (lambda m, y: torch.fft.fftn(y, dim=(1,)).real, 16),
    "Fourier neural operator": (
        lambda m, y: torch.fft.irfft(torch.fft.rfft(y) * m.modes[0], n=16),
        16,
    ),
    "contraction of complex numbers": (
        lambda m, y: torch.einsum("bi,im->bm", torch.complex(y, -y), m.modes).angle(),
        9,
    ),
    "spectrogram": (spectrogram, 20),
    "diagonal matrices": (lambda m, y: torch.diag_embed(y).sum(1), 16),
    "broadcast tensors": (lambda m, y: sum(torch.broadcast_tensors(y, y[:, :1])), 16),
    "median": (lambda m, y: y - torch.quantile(y, 0.5, 1, keepdim=True), 16),
    "entropy": (lambda m, y: torch.xlogy(y.sigmoid(), y.sigmoid()), 16),
    "wavelets": (lambda m, y: torch.sinc(y) + torch.special.expit(y), 16),
}


@pytest.mark.parametrize("name", ISLANDS)
def test_an_island_between_int8_layers(name: str, tmp_path: Path) -> None:
    model = Calls(*ISLANDS[name]).eval()
    torch.manual_seed(1)
    x = torch.rand(8, 16)
    q = octavo.quantize(model, calibration=[x], progress=False)
    q.save(tmp_path / "model.octavo")
    q = octavo.load(tmp_path / "model.octavo")
    with torch.no_grad():
        expected = model(x)
    assert 20 * torch.log10(expected.norm() / (q(x) - expected).norm()) > 25
    assert q(x[:3]).shape == (3, 4)
    assert q.summary().int8 >= 2
    metas = q.graph.metas.items()
    complexes = {tensor for tensor, meta in metas if meta and meta.dtype.startswith("complex")}
    assert not complexes & set(q.plan.quantized)


def test_a_spectrum_has_no_onnx_form() -> None:
    x = torch.rand(8, 16)
    q = octavo.quantize(Calls(spectrogram, 20).eval(), calibration=[x], progress=False)
    with pytest.raises(ExportError, match=r"aten\.stft\.default.*'torch' and 'reference' run it"):
        q.lower("onnxruntime")


LOSSES = {
    "mse": lambda y, x: functional.mse_loss(y, x[:, :4]),
    "l1, of each pair": lambda y, x: functional.l1_loss(y, x[:, :4], reduction="none"),
    "huber": lambda y, x: functional.huber_loss(y, x[:, :4]),
    "smooth l1": lambda y, x: functional.smooth_l1_loss(y, x[:, :4]),
    "cross entropy": lambda y, x: functional.cross_entropy(y, x[:, :4].argmax(1)),
    "cross entropy of probabilities": lambda y, x: functional.cross_entropy(
        y, x[:, :4].softmax(1), label_smoothing=0.1
    ),
    "binary": lambda y, x: functional.binary_cross_entropy_with_logits(y, x[:, :4].round()),
}


class Loses(nn.Module):
    """Returns scores and a loss."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.loss = nn.Linear(16, 4), loss

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.linear(x)
        return scores, self.loss(scores, x)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_that_of_the_scores(name: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(8, 16)
    q = octavo.quantize(Loses(LOSSES[name]).eval(), calibration=[x], progress=False)
    for batch in (x, x[:3]):
        scores, loss = q(batch)
        torch.testing.assert_close(loss, LOSSES[name](scores, batch))


def test_fnet_of_transformers() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    model = built("FNetForSequenceClassification", max_position_embeddings=32, **sizes)
    batch = {"input_ids": torch.randint(1, 50, (4, 12)), "labels": torch.randint(0, 2, (4,))}
    q = octavo.quantize(model, calibration=[batch], progress=False)
    with torch.no_grad():
        expected = model(batch["input_ids"]).logits
    error = q(input_ids=batch["input_ids"]).logits - expected
    assert 20 * torch.log10(expected.norm() / error.norm()) > 30


def test_complex_weights_have_no_row_in_bfloat16() -> None:
    model, x = Calls(*ISLANDS["Fourier neural operator"]).eval(), torch.rand(8, 16)
    q = octavo.quantize(model, calibration=[x], progress=False)
    rows = octavo.compare(model, q, [x], rounds=1, progress=False)
    assert rows["bf16"].error == (
        "TypeError: 'modes' holds complex numbers, of which there are none in bfloat16"
    )
    assert rows["int8"].sqnr_db > 25
