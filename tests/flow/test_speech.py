"""`octavo.quantize` with networks for speech, at lengths that no calibration batch had."""

from __future__ import annotations

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
