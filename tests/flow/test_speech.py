"""`octavo.quantize` with networks for speech, at lengths that no calibration batch had."""

from __future__ import annotations

import pytest
import torch
from decibel import sqnr_db
from torch import Tensor
from zoo.sequences import Conformer

import octavo


def spectra(samples: int, length: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, length, 40, generator=torch.Generator().manual_seed(seed))


def test_a_conformer_at_any_length() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Conformer().eval()
    q = octavo.quantize(
        net,
        calibration=[spectra(2, length, seed=length) for length in (48, 64, 80)],
        target=octavo.host_target(),
        progress=False,
    )
    assert isinstance(q, octavo.QuantizedModel)
    assert octavo.summary(q).coverage.share >= 0.9
    with torch.no_grad():
        for samples, length in ((1, 30), (3, 65), (2, 128)):
            x = spectra(samples, length, seed=1)
            assert sqnr_db(net(x), q(x)) > 20


def test_wav2vec2_names_the_letters_of_sounds_of_any_length() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(
        vocab_size=12,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16, 32),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = transformers.Wav2Vec2ForCTC(config).eval()

    def sounds(samples: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(length)
        return {"input_values": torch.randn(samples, length, generator=generator)}

    q = octavo.quantize(
        net,
        calibration=[sounds(2, length) for length in (600, 800, 1000)],
        target=octavo.host_target(),
        progress=False,
    )
    assert isinstance(q, octavo.QuantizedModel)
    # Products of queries, keys and values are float by default: much in a net that is so narrow.
    assert octavo.summary(q).coverage.share >= 0.75
    with torch.no_grad():
        for samples, length in ((1, 400), (3, 810), (2, 1500)):
            x = sounds(samples, length)
            assert sqnr_db(net(**x).logits, q(**x).logits) > 15
