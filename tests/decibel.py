"""How near a result is."""

from __future__ import annotations

from torch import Tensor

from octavo.measuring.metrics import Likeness


def sqnr_db(expected: Tensor, got: Tensor) -> float:
    """Signal to noise of a result, in dB; tensors of one shape."""
    assert expected.shape == got.shape
    likeness = Likeness()
    likeness.update(expected.detach(), got.detach())
    return likeness.sqnr_db
