"""Inputs whose channels can be scaled: what reads them, and what makes them and takes the inverse.

Tested in tests/flow/blockwise/test_finding_folds.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.numerics.sqnr import sqnr_db

_ALIKE_DB = 60.0
_HALF_ALIKE_DB = 30.0  # in bfloat16 and float16 the weights of some norms, and rotated ones, round


@dataclass(frozen=True)
class Made:
    """A tensor whose first axis has the channels as they are made.

    Attributes:
        tensor: of the model: the weight or bias of a norm or of a linear layer.
        offset: what is added to it before it multiplies, as some norms do.
    """

    tensor: Tensor
    offset: float = 0.0

    def divide(self, scales: Tensor) -> None:
        by = scales.to(self.tensor.dtype).reshape(-1, *[1] * (self.tensor.dim() - 1))
        self.tensor.copy_((self.tensor + self.offset) / by - self.offset)


@dataclass(frozen=True)
class Fold:
    """One input.

    Attributes:
        paths: of the layers that read it and become integers.
        makers: what makes it.
        readers: the weights that read it, ``[out, in]``, those that stay float among them.
        made_by: int64 ``[in]``: which index of the makers' first axis a channel is; -1 for none.
    """

    paths: tuple[str, ...]
    makers: Sequence[Made]
    readers: Sequence[Tensor]
    made_by: Tensor

    @torch.no_grad()
    def apply(self, scales: Tensor) -> None:
        """Multiply the columns of all readers, and divide the makers.

        Args:
            scales: float ``[in]``, the same for channels that are made by one; else one.
        """
        own = self.made_by >= 0
        for maker in self.makers:
            by_row = torch.ones(len(maker.tensor), dtype=scales.dtype, device=scales.device)
            by_row[self.made_by[own]] = scales[own]
            maker.divide(by_row)
        for reader in self.readers:
            reader.mul_(scales.to(reader.dtype))

    def alternating(self) -> Tensor:
        """Scales of one, two and four, with which all but some norms divide without rounding."""
        device = self.readers[0].device
        powers = torch.tensor([1.0, 2.0, 4.0], device=device)[self.made_by.clamp(min=0) % 3]
        return torch.where(self.made_by >= 0, powers, 1.0)

    @contextmanager
    def tried(self) -> Iterator[None]:
        """Inside, the fold is applied.

        Matrices are taken back by the inverse, which is exact but for the tiniest of halves; so no
        copy of a model's weights is needed.
        """
        matrices = [*(maker.tensor for maker in self.makers), *self.readers]
        half = (t for t in matrices if t.dim() == 1 or t.dtype is torch.float16)
        before = [(tensor, tensor.detach().clone()) for tensor in half]
        self.apply(self.alternating())
        try:
            yield
        finally:
            self.apply(1 / self.alternating())
            with torch.no_grad():
                for tensor, old in before:
                    tensor.copy_(old)

    def is_exact(self, run: Callable[[], Tensor]) -> bool:
        """Whether what runs gives the same with scales as without."""
        exact = run()
        with self.tried():
            return alike(exact, run(), self.readers[0].dtype)


def alike(exact: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Whether two results are the same, but for rounding.

    Args:
        exact, other: the results.
        dtype: of the weights that made them.
    """
    wanted, found = exact.double(), other.double()
    noise = float((wanted - found).square().sum())
    least = _ALIKE_DB if dtype in (torch.float32, torch.float64) else _HALF_ALIKE_DB
    return sqnr_db(float(wanted.square().sum()), noise) >= least
