"""``aten.embedding_bag`` of rows that were picked before: those of a table that is no float one.

Tested in tests/model/nn/test_embedding.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from octavo.graph.operators import resolve


def bags(
    rows: Tensor,
    indices: Tensor,
    offsets: Tensor,
    mode: int,
    factors: Tensor | None,
    include_last_offset: bool,
    padding: int | None,
) -> Any:
    """What ``aten.embedding_bag`` returns of the rows that it would read.

    Args:
        rows: float ``[n, columns]``, of the n ``indices``.
        indices, offsets, mode, factors, include_last_offset, padding: as the operator has them.
    """
    operator = resolve("aten.embedding_bag.padding_idx")
    places = torch.arange(len(indices), dtype=offsets.dtype, device=offsets.device)
    if padding is not None:  # one row in front, for those that do not count
        rows = torch.cat([rows.new_zeros(1, rows.shape[1]), rows])
        places = torch.where(indices == padding, 0, places + 1)
    rest = (include_last_offset, None if padding is None else 0)
    return operator(rows, places, offsets, False, mode, False, factors, *rest)
