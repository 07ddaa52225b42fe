"""Images in the order of memory that convolutions like best.

Tested in tests/measuring/layers/test_layer_errors.py.
"""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(tensor: Tensor) -> Tensor:
    """Images ``[N, C, H, W]`` with the channels of a pixel side by side; others as they are.

    int8 kernels give theirs like that, so that none has to be copied for a comparison.
    """
    if tensor.dim() != 4:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)
