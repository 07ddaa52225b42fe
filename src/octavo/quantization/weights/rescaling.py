"""Methods that scale the channels of an input before weights are rounded; in float nothing changes.

The columns of weights are multiplied, and what makes their input, a norm or a linear layer, is
divided by the same: so the difficulty moves from one tensor to another.

Tested in tests/quantization/weights/test_awq.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.quantization.weights.layers import Layer
from octavo.quantization.weights.method import WeightMethod


class Rescaling(WeightMethod):
    """A method of `scales`; it is asked before others round, and comes first in ``weights=``.

    It is for models in modules, whose norms and linear layers take the scales.
    """

    def scales(self, layers: Sequence[Layer], seen: Any, shared: Tensor) -> Tensor:
        """By what the columns of the weights of some layers are multiplied, float ``[in]``.

        Args:
            layers: linear layers that read one input, all of which it fits.
            seen: the state of its statistic of that input.
            shared: int64 ``[in]``: channels of the same number get the same scale, since one
                thing makes them; those of -1 keep theirs, a scale of one.
        """
        raise NotImplementedError


def together(values: Tensor, shared: Tensor, reduce: str) -> Tensor:
    """For each channel what its like have together, by ``"mean"`` or ``"amax"``.

    Args:
        values: float ``[in]``, above zero.
        shared: see `Rescaling.scales`; channels of -1 get one.
    """
    own = shared >= 0
    count = int(shared.max()) + 1 if bool(own.any()) else 0
    joined = values.new_zeros(count)
    joined.scatter_reduce_(0, shared[own], values[own], reduce, include_self=False)
    result = torch.ones_like(values)
    result[own] = joined[shared[own]]
    return result
