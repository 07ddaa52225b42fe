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

_ALIKE_DB = 40.0  # what is no fold is off by its whole size; in bfloat16 a fold itself rounds


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
        """Inside, the fold is applied."""
        touched = [*(maker.tensor for maker in self.makers), *self.readers]
        before = [tensor.detach().clone() for tensor in touched]
        self.apply(self.alternating())
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, old in zip(touched, before, strict=True):
                    tensor.copy_(old)

    def is_exact(self, run: Callable[[], Tensor]) -> bool:
        """Whether what runs gives the same with scales as without."""
        exact = run()
        with self.tried():
            return alike(exact, run())


def alike(exact: Tensor, other: Tensor) -> bool:
    """Whether two results are the same, but for rounding."""
    wanted, found = exact.double(), other.double()
    noise = float((wanted - found).square().sum())
    return sqnr_db(float(wanted.square().sum()), noise) >= _ALIKE_DB
