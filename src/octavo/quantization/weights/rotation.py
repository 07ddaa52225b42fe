"""Rotation: what blocks hand on to each other is turned, so that no channel is larger than others
(Ashkboos et al. 2024, QuaRot, arXiv:2404.00456; Liu et al. 2024, SpinQuant, arXiv:2405.16406, whose
R1 and R2 these are).

An RMS norm without weights has ``norm(x Q) = norm(x) Q`` for an orthogonal ``Q``. So its weights go
into the linear layers that read it, these take ``Q`` too, ``W Q``, and those that write take it
back, ``Q^T W``: in float nothing changes, and nothing is done at run time. ``Q`` is a Hadamard
matrix with random signs, which mixes all channels alike.

Tested in tests/quantization/weights/test_rotation.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from octavo.arguments import INTEGER, expect
from octavo.quantization.weights.layers import Layer
from octavo.quantization.weights.method import WeightMethod


@dataclass(frozen=True)
class Rotation(WeightMethod):
    """The hidden states of a language model with RMS norms are turned before others round.

    It is for models in modules, and needs a batch, on which it is tried. A head that is tied to the
    table gets a weight of its own, since the last norm's weights go into the head alone. Tables and
    heads become integers as rules say, and lie in other channels then.

    Args:
        seed: of the signs.

    Raises:
        InputError: ``seed`` is no whole number.

    Example:
        >>> turned = octavo.quantize(
        ...     llama,
        ...     calibration=[{"input_ids": tokens}],
        ...     scope="modules",
        ...     mode="weight_only",
        ...     weights=[octavo.Rotation(), octavo.Clip(), octavo.GPTQ()],
        ... )
        >>> turned(tokens).logits.shape
        torch.Size([1, 16, 512])
    """

    name: ClassVar[str] = "rotation"

    seed: int = 0

    def __post_init__(self) -> None:
        expect(INTEGER, seed=self.seed)

    def fits(self, layer: Layer) -> bool:
        return False  # it turns a model, before there are layers to round

    def matrix(self, size: int) -> Tensor:
        """Orthogonal, float64 ``[size, size]``: a Hadamard matrix with random signs, or a random
        one where no such matrix is known here.
        """
        chance = torch.Generator().manual_seed(self.seed)
        known = hadamard(size)
        if known is None:
            noise = torch.randn(size, size, dtype=torch.float64, generator=chance)
            orthogonal: Tensor = torch.linalg.qr(noise)[0]
            return orthogonal
        signs = 2.0 * torch.randint(0, 2, (size, 1), generator=chance) - 1
        return signs.double() * known.div(size**0.5)


def hadamard(size: int) -> Tensor | None:
    """A matrix of ones and minus ones whose rows are orthogonal, float64 ``[size, size]``.

    Powers of two times 1, and times what Paley's two constructions give: one more than a prime of
    4 n + 3, or twice one more than a prime of 4 n + 1 (Paley 1933, On orthogonal matrices).

    Returns:
        ``None`` where these give none.

    Example:
        >>> hadamard(2)
        tensor([[ 1.,  1.],
                [ 1., -1.]], dtype=torch.float64)
        >>> hadamard(6) is None
        True
    """
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if size < 1 or size % 2:
        return None
    half = hadamard(size // 2)
    if half is not None:
        return torch.kron(half, two)
    if _is_prime(size - 1) and size % 4 == 0:
        border = _bordered(size - 1, -1.0)
        return border + torch.eye(size, dtype=torch.float64)
    prime = size // 2 - 1
    if _is_prime(prime) and prime % 4 == 1:
        turned = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        one = torch.eye(size // 2, dtype=torch.float64)
        return torch.kron(_bordered(prime, 1.0), two) + torch.kron(one, turned)
    return None


def _bordered(prime: int, below: float) -> Tensor:
    """Which differences of numbers modulo a prime are squares (1) or not (-1), with a border."""
    numbers = torch.arange(prime)
    squares = torch.full((prime,), -1.0, dtype=torch.float64)
    squares[(numbers * numbers) % prime] = 1.0
    squares[0] = 0.0
    result = torch.ones(prime + 1, prime + 1, dtype=torch.float64)
    result[0, 0], result[1:, 0] = 0.0, below
    result[1:, 1:] = squares[(numbers[:, None] - numbers) % prime]
    return result


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, int(number**0.5) + 1))
