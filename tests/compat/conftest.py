"""One network, trained once, for all tests of old code."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from compat.networks import Net, Trained, smaller, train
from octavo.cli.demo.digits import load_digits


@pytest.fixture(scope="session")
def digits() -> Trained:
    torch.manual_seed(0)
    data = load_digits()
    batches = DataLoader(smaller(data.train), 64, shuffle=True)
    model = Net()
    train(model, batches, epochs=6, lr=0.05)
    return Trained(model.eval(), batches, DataLoader(smaller(data.test), 125))
