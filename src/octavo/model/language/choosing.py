"""`Choice`: which token comes next, by the logits."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.errors import InputError, RuntimeUnavailable


@dataclass(frozen=True)
class Choice:
    """How the next token is chosen.

    Attributes:
        temperature: 0 for the most likely token; else logits are divided by it before one is drawn.
        top_p: a token is drawn from the most likely ones that have this probability together.
        seed: of what is drawn; the same seed writes the same text. ``None``: another each time.

    Raises:
        InputError: a number is outside of what it can be.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise InputError(f"temperature is {self.temperature}: give a number from 0 to 100")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}: give a number above 0, up to 1")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}: give one of 64 bits")

    def dice(self) -> torch.Generator:
        """What draws for one text, from its first token on."""
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return torch.Generator().manual_seed(seed)

    def pick(self, logits: Tensor, dice: torch.Generator) -> int:
        """The next token.

        Args:
            logits: of one place, ``[vocabulary]``.
            dice: of this text.

        Raises:
            RuntimeUnavailable: a logit is no number, or the largest one is infinite.

        Example:
            >>> choice = Choice()
            >>> choice.pick(torch.tensor([0.0, 2.0, 1.0]), choice.dice())
            1
        """
        if not logits.max().isfinite():  # where there is a NaN it is the largest
            raise RuntimeUnavailable(
                "the model's logits are not numbers (NaN, infinity): its weights may be damaged"
            )
        if self.temperature == 0:
            return int(logits.argmax())
        scaled = logits.double() - logits.double().max()
        likely, tokens = torch.softmax(scaled / self.temperature, -1).sort(descending=True)
        before = likely.cumsum(-1) - likely
        likely[before >= self.top_p] = 0.0
        return int(tokens[torch.multinomial(likely, 1, generator=dice)])
