"""`MSE` against every factor tried on the values themselves."""

from __future__ import annotations

import pytest
import torch
from observing import DISTRIBUTIONS, error_of, mean_squared_error

from octavo.numerics.affine import qparams_of_range
from octavo.numerics.observers import MSE
from octavo.numerics.scheme import Scheme

# What is missed between two factors of the search, on values that are few.
TOLERANCE = 1.05


@pytest.mark.parametrize("scheme", [Scheme("uint8"), Scheme("int8", symmetric=True)], ids=str)
@pytest.mark.parametrize("name", ["normal", "laplace", "student t, 3 degrees", "relu"])
def test_the_best_factor_in_each_channel(name: str, scheme: Scheme) -> None:
    x = DISTRIBUTIONS[name](8, 3000)
    low, high = x.amin(1), x.amax(1)
    tried = [
        mean_squared_error(x, qparams_of_range(low * f, high * f, scheme), 0)
        for f in torch.linspace(0.05, 1, 200)
    ]
    best = torch.stack(tried).amin(0)
    assert (error_of(MSE(), x, scheme, 0) <= best * TOLERANCE).all()
