"""Matrix products that meet few different numbers of rows.

oneDNN compiles a kernel for each number of rows that it meets, some 0.3 MB each, and keeps a
thousand. A server whose batches or texts are of any length would grow by hundreds of megabytes. So
a layer computes on the first numbers of rows that it meets as they are, which costs nothing where
they are always the same ones, and adds rows of zeros to reach one of few where they are not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

AS_THEY_ARE = 16  # numbers of rows that a layer takes without adding any
_STEPS = 4  # from one power of two to the next: at most a quarter of the rows is added

Product = Callable[..., Tensor]


def with_few_row_counts(product: Product, columns: int) -> Product:
    """A product ``(q, *rest) -> result`` of rows ``[..., columns]``, given few numbers of rows."""
    met: set[int] = set()

    def call(q: Tensor, *rest: object) -> Tensor:
        if torch.compiler.is_compiling():
            return product(q, *rest)
        rows = q.numel() // columns
        if rows not in met and len(met) < AS_THEY_ARE:
            met.add(rows)
        wanted = rows if rows in met else rounded_up(rows)
        if wanted == rows:
            return product(q, *rest)
        padded = F.pad(q.reshape(rows, columns), (0, 0, 0, wanted - rows))
        return product(padded, *rest)[:rows].reshape(*q.shape[:-1], -1)

    return call


def rounded_up(rows: int) -> int:
    """The next number of which there are four from one power of two to the next.

    Example:
        >>> [rounded_up(rows) for rows in (5, 9, 17, 33, 40, 1000)]
        [5, 10, 20, 40, 40, 1024]
    """
    step = max(1, 2 ** ((rows - 1).bit_length() - 1) // _STEPS) if rows > 1 else 1
    return -(-rows // step) * step
