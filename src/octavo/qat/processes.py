"""What the processes of a distributed training know together, so that all of them train, and
convert, the same model. Without others a process knows what it knows.

Tested in tests/qat/test_distributed.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def are_several() -> bool:
    """Whether this is one of the processes of ``torch.distributed``."""
    return distributed.is_available() and distributed.is_initialized()


def extrema_of_all(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value of all; NaN where one has a NaN."""
    if not are_several():
        return low, high
    # What the largest of a NaN and a number is depends on the backend, so that it travels apart.
    bad = torch.isnan(low)
    ends = torch.stack([-low, high]).masked_fill(bad, -torch.inf)
    both = torch.cat([ends, bad.to(ends.dtype)[None]])
    distributed.all_reduce(both, distributed.ReduceOp.MAX)
    both = both.masked_fill(both[2] > 0, torch.nan)
    return -both[0], both[1]


@torch.no_grad()
def take_mean_of_all(*given: Tensor | None) -> None:
    """Give those that are tensors, of one type, the mean of what they are in all processes."""
    tensors = [tensor for tensor in given if tensor is not None]
    if not tensors or not are_several():
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat, distributed.ReduceOp.SUM)
    flat /= distributed.get_world_size()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.data.copy_(mean.reshape(tensor.shape))  # as if the step itself had written it
