"""Measurements that are made up, for the tests of tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from octavo.runtimes.tuning import Variant
from octavo.runtimes.tuning.gain import Gain


@dataclass
class Made:
    """Measurements out of a function of the variant, in seconds, on a clock of their own."""

    seconds_of: Callable[[Variant], float]
    noise: float = 0.0
    takes: float = 1.0
    now: float = 0.0
    seen: list[list[Variant]] = field(default_factory=list)

    def measure(
        self,
        runs: Mapping[Variant, Callable[..., Any]],
        best: Variant,
        inputs: tuple[Tensor, ...],
        *,
        all_of_them: bool = False,
    ) -> dict[Variant, Gain]:
        self.seen.append(list(runs))
        self.now += self.takes
        own = self.seconds_of(best)
        return {variant: Gain(own / self.seconds_of(variant), self.noise) for variant in runs}

    def clock(self) -> float:
        return self.now
