"""Deep copies of modules that torch refuses to copy, and of those that nothing can copy."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm

from octavo.errors import OctavoError
from octavo.graph.copying import copied


@pytest.mark.parametrize(
    "change", [weight_norm, spectral_norm, lambda m: prune.l1_unstructured(m, "weight", 0.5)]
)
def test_a_computed_weight_is_computed_by_the_copy(change: Callable[[nn.Module], object]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
    change(net[0])
    net.eval()
    x = torch.randn(4, 8)
    exact = net(x)  # its weight has a gradient's history now
    twin = copied(net)
    assert torch.equal(twin(x), exact)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    assert not torch.equal(twin(x), exact)
    assert torch.equal(net(x), exact)


def test_what_cannot_be_copied_is_one_error() -> None:
    net = nn.Linear(2, 2)
    net.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(OctavoError, match=r"the Linear cannot be copied \(cannot pickle '_thread"):
        copied(net)
