"""`Histogram` next to PyTorch's observer of the same goal."""

from __future__ import annotations

import pytest
import torch
from observing import DISTRIBUTIONS, error_of, mean_squared_error

from octavo.numerics.affine import QParams
from octavo.numerics.observers import Histogram
from octavo.numerics.scheme import Scheme

peers = pytest.importorskip("torch.ao.quantization.observer")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "scheme", [Scheme("uint8"), Scheme("int8", symmetric=True, narrow_range=True)], ids=str
)
@pytest.mark.parametrize("name", ["normal", "laplace", "lognormal", "relu", "one outlier"])
def test_no_worse_than_the_peer(name: str, scheme: Scheme) -> None:
    x = DISTRIBUTIONS[name](20_000)
    peer = peers.HistogramObserver(
        dtype=torch.qint8 if scheme.integers.signed else torch.quint8,
        qscheme=torch.per_tensor_symmetric if scheme.symmetric else torch.per_tensor_affine,
        quant_min=scheme.qmin,
        quant_max=scheme.qmax,
    )
    peer(x)
    of_peer = mean_squared_error(x, QParams(*peer.calculate_qparams(), scheme))
    assert error_of(Histogram(), x, scheme) <= of_peer * 1.01
