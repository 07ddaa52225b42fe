"""`octavo.quantize` with networks for speech, at lengths that no calibration batch had."""

from __future__ import annotations

from typing import Any

import torch
from decibel import sqnr_db
from small_transformers import built
from torch import Tensor, nn
from zoo.sequences import Conformer

import octavo


def quantized(net: nn.Module, calibration: list[Any], share: float) -> octavo.QuantizedModel:
    """As one graph, of whose multiply-adds so many are on integers."""
    q = octavo.quantize(net, calibration=calibration, target=octavo.host_target(), progress=False)
    assert isinstance(q, octavo.QuantizedModel)
    assert octavo.summary(q).coverage.share >= share
    return q


def spectra(samples: int, length: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, length, 40, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_a_conformer_at_any_length() -> None:
    torch.manual_seed(0)
    net = Conformer().eval()
    q = quantized(net, [spectra(2, length, seed=length) for length in (48, 64, 80)], 0.9)
    for samples, length in ((1, 30), (3, 65), (2, 128)):
        x = spectra(samples, length, seed=1)
        assert sqnr_db(net(x), q(x)) > 20


def sounds(samples: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)
    return {"input_values": torch.randn(samples, length, generator=generator)}


@torch.no_grad()
def test_wav2vec2_names_the_letters_of_sounds_of_any_length() -> None:
    net = built(
        "Wav2Vec2ForCTC",
        vocab_size=12,
        hidden_size=32,
        intermediate_size=64,
        conv_dim=(16, 32),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    # Products of queries, keys and values are float by default: much in a net that is so narrow.
    q = quantized(net, [sounds(2, length) for length in (600, 800, 1000)], 0.75)
    for samples, length in ((1, 400), (3, 810), (2, 1500)):
        x = sounds(samples, length)
        assert sqnr_db(net(**x).logits, q(**x).logits) > 15
